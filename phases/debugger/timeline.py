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
    timeline, names = run.timeline, run.timeline.program.names
    arcs, _, elapsed = timeline.columns(timeline.first, run.step_count)
    ways: Counter[tuple[str, str]] = Counter()
    for (source, target), count in Counter((arc.source, arc.target) for arc in arcs).items():
        ways[names[source], names[target]] += count
    return ways, sum(elapsed), next(run.steps(run.step_count - 1), None) if arcs else None


def moment_line(moment: Moment, *, time: bool = False) -> str:
    """A step in one line."""
    words = [f"{moment.number:>5} {moment.phase} -> {moment.target}", moment.guards, moment.found]
    if time:
        words.append(f"{moment.elapsed_ns / 1e6:.3f} ms")
    return "  ".join(word for word in words if word)
