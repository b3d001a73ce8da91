"""A machine that has nothing to do with language models: a crossing, recorded, replayed, drawn and property-tested."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from statemachine import End, Guard, Journal, JournalWriter, Machine, Phase, Run, Signal, Status, Transition, to_mermaid


@dataclass
class Crossing:
    seed: int
    waiting: int = 0  # cars
    passed: list[int] = field(default_factory=list)  # cars, by green light


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


jam: Guard[Crossing] = Guard("jam", lambda context: context.waiting > 0)
over: Guard[Crossing] = Guard("over", lambda context: len(context.passed) >= 5)
red, green = Red(), Green()
table = [Transition(red, green), Transition(green, red, ~jam & ~over), Transition(green, End("done"), over)]
table.append(Transition(green, green, jam & ~over))  # stay green until nobody waits
off = Signal("off", to=End("night", status=Status.CANCELLED))
crossing = Machine("crossing", start=red, transitions=table, signals=[off])


def new_context() -> Crossing:
    return Crossing(seed=7)


if __name__ == "__main__":
    from hypothesis import strategies as st

    from statemachine import play, verify
    from statemachine.testing import machine_rules, run_rules

    path = Path(tempfile.mkdtemp()) / "crossing.jsonl"
    run = Run(crossing, new_context(), journal=JournalWriter(path))
    print("recorded:", run.start(), run.context.passed)
    # By the recorded outcomes alone, and running every phase again:
    print("play:", play(Journal.open(path), Run(crossing, new_context())) or "the same")
    print("verified:", verify(Journal.open(path), Run(crossing, new_context())).verified)
    print(to_mermaid(crossing))
    print("kept the rules:", run_rules(machine_rules(crossing, st.builds(Crossing, st.integers(0, 99)))), sep="\n")
