"""A machine that draws into a pinned buffer, for faults to be planted in."""

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from statemachine import End, Machine, Phase, Signal, Transition, guard
from statemachine.testing import MachineRules, machine_rules


@dataclass
class Bag:
    __pinned__: ClassVar[tuple[str, ...]] = ("buffer",)
    buffer: Any = field(default_factory=lambda: np.zeros(4, np.int64))
    seed: int = 0
    count: int = 0
    drawn: list[int] = field(default_factory=list)


class Sound(Phase[Bag, int]):
    """Draws a number into the pinned buffer; the faults below are made of it."""

    def __init__(self) -> None:
        super().__init__("draw")

    def run(self, context: Bag) -> int:
        number = random.Random(context.seed * 1000 + context.count).randrange(100)
        context.buffer[context.count % 4] = number
        return number

    def apply(self, context: Bag, outcome: int) -> None:
        context.count += 1
        context.drawn.append(outcome)


@guard
def enough(context: Bag) -> bool:
    return context.count >= 8


@guard
def lucky(context: Bag) -> bool:
    return bool(context.drawn) and context.drawn[-1] % 3 == 0


def rules_of(phase: Phase = None, *, full: Any = enough, luck: Any = lucky, **options: Any) -> type[MachineRules]:
    phase, rest = phase or Sound(), Phase("rest")
    table = [
        Transition(phase, rest, luck & ~full),
        Transition(phase, phase, ~luck & ~full),
        Transition(phase, End("end"), full),
        Transition(rest, phase),
    ]
    machine = Machine(
        "bag", start=phase, transitions=table, edits=options.pop("known", ()), signals=[Signal("skip", to=rest)]
    )
    return machine_rules(machine, st.builds(Bag, seed=st.integers(0, 3)), **options)
