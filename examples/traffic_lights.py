"""Traffic lights: a first machine, recorded, replayed, steered, drawn and property-tested."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from statemachine import End, Journal, JournalWriter, Machine, Phase, Run, Signal, Status, Transition, guard, verify


@dataclass
class Crossing:
    seed: int
    waiting: int = 0  # cars
    passed: list[int] = field(default_factory=list)  # cars, by green light


def new_context() -> Crossing:
    return Crossing(seed=7)


class Red(Phase[Crossing, int]):
    def run(self, context: Crossing) -> int:  # does the work and says what came of it
        return Random(f"{context.seed} {len(context.passed)}").randrange(5)  # keyed by the place, so it can come again

    def apply(self, context: Crossing, outcome: int) -> None:  # enters it in the context
        context.waiting += outcome


class Green(Phase[Crossing, int]):
    def run(self, context: Crossing) -> int:
        return min(context.waiting, 3)

    def apply(self, context: Crossing, outcome: int) -> None:
        context.waiting -= outcome
        context.passed.append(outcome)


@guard
def jam(context: Crossing) -> bool:
    return context.waiting > 0


@guard
def over(context: Crossing) -> bool:
    return len(context.passed) >= 5


red, green = Red(), Green()
machine = Machine(
    "crossing",
    start=red,
    transitions=[
        Transition(red, green),
        Transition(green, green, jam & ~over),  # stay green until nobody waits
        Transition(green, red, ~jam & ~over),
        Transition(green, End("done"), over),
    ],
    signals=[Signal("off", to=End("night", status=Status.CANCELLED))],
)


def main() -> None:
    path = Path(tempfile.mkdtemp(prefix="crossing-")) / "crossing.jsonl"
    run = Run(machine, new_context(), journal=JournalWriter(path), keep=True)
    print("recorded:", run.start(), run.context.passed)
    print("verified:", verify(Journal.open(path), Run(machine, new_context())).verified)
    run.goto(3)
    run.signal("off")
    print("from step 3 on otherwise:", run.status, run.context.passed)

    from hypothesis import strategies as st

    from statemachine.testing import machine_rules, run_rules  # what only tests need

    coverage = run_rules(machine_rules(machine, contexts=st.builds(Crossing, st.integers(0, 99))))
    print("kept the rules:", sum(map(bool, coverage.transitions.values())), "transitions seen")


if __name__ == "__main__":
    main()
