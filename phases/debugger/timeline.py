"""The steps of a run as they stand on the timeline, those ahead of the place where it rests included."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from phases.printable import one_line
from statemachine import Run, Step
from statemachine.definition.variable import in_words

Words = Callable[[Step], str]  # what came of a step; "" if there is nothing to say


@dataclass(frozen=True, slots=True)
class Moment:
    """A step on the timeline."""

    number: int
    phase: str
    target: str
    elapsed_ns: int
    found: str
    guards: str

    @classmethod
    def of(cls, step: Step, words: Words) -> "Moment":
        guards = in_words(step.guards)
        found = one_line(step.raised) if step.raised else words(step)
        return cls(step.number, step.phase, step.target, step.elapsed_ns, found, guards)


def moments(run: Run[Any], first: int, last: int, words: Words) -> Iterator[Moment]:
    """Steps `first` up to `last`, as far as there are such."""
    first = max(0, first)
    for step in islice(run.steps(first, future=True), max(0, last - first)):
        yield Moment.of(step, words)


def travelled(run: Run[Any]) -> tuple[Counter[tuple[str, str]], int, Step | None]:
    """How often the run went from one phase to another, how long all steps took (ns), and the last of them."""
    ways: Counter[tuple[str, str]] = Counter()
    elapsed, last = 0, None
    for step in run.steps():
        ways[step.phase, step.target] += 1
        elapsed += step.elapsed_ns
        last = step
    return ways, elapsed, last
