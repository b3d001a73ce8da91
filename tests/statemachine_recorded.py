"""A machine to record: it counts, draws seeded numbers, and can be edited and cancelled. Also a program of its own."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from statemachine import Edit, End, JournalWriter, Machine, Phase, Run, Signal, Status, Transition, guard


@dataclass(slots=True)
class Walk:
    seed: int = 0
    limit: int = 20
    drawn: list[int] = field(default_factory=list)
    bonus: int = 0


class Draw(Phase[Walk, int]):
    """Draws a number that depends on seed and position only."""

    def run(self, context: Walk) -> int:
        return Random(context.seed * 1_000_003 + len(context.drawn)).randrange(1000) + context.bonus

    def apply(self, context: Walk, outcome: int) -> None:
        context.drawn.append(outcome)

    def digest(self, context: Walk) -> list[int]:
        return [len(context.drawn)]


class Note(Phase[Walk, str]):
    def run(self, context: Walk) -> str:
        return "even" if context.drawn[-1] % 2 == 0 else "odd"

    def apply(self, context: Walk, outcome: str) -> None:
        context.bonus += outcome == "odd"


class AddBonus(Edit[Walk, int]):
    def run(self, context: Walk, *, amount: int = 0) -> int:
        if amount <= 0:
            raise ValueError(f"amount is a positive number, not {amount}")
        return amount

    def apply(self, context: Walk, outcome: int) -> None:
        context.bonus += outcome


@guard
def far_enough(context: Walk) -> bool:
    return len(context.drawn) >= context.limit


@guard
def odd(context: Walk) -> bool:
    return context.drawn[-1] % 2 == 1


draw, note = Draw(), Note()
machine = Machine(
    "walk",
    start=draw,
    transitions=[
        Transition(draw, note, odd & ~far_enough),
        Transition(draw, draw, ~odd & ~far_enough),
        Transition(draw, End("done"), far_enough),
        Transition(note, draw),
    ],
    signals=[Signal("stop", to=End("stopped", status=Status.CANCELLED)), Signal("skip", to=note, sources=(draw,))],
    edits=[AddBonus("bonus")],
)


def record(path: Path, *, seed: int = 0, limit: int = 20, **options: object) -> Run[Walk]:
    """Record a whole run."""
    run = Run(
        machine, Walk(seed, limit), journal=JournalWriter(path), request={"seed": seed, "limit": limit}, **options
    )
    run.start()
    return run


def fresh(path: Path) -> Run[Walk]:
    """A ready run of what a journal recorded."""
    from statemachine import Journal

    request = Journal.open(path).header.request
    return Run(machine, Walk(request["seed"], request["limit"]), request=request)


if __name__ == "__main__":  # record for ever, until somebody kills it
    record(Path(sys.argv[1]), limit=10**9)
