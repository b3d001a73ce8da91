"""The rows of a machine's table: guarded transitions, signals from outside, and edits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase

Context = TypeVar("Context")
Outcome = TypeVar("Outcome")

ADVANCE = "advance"  # the event that leaves a phase after it ran; each signal is an event of its own


@dataclass(frozen=True, slots=True)
class Transition(Generic[Context]):
    """From `source` to `target`, taken after `source` ran if `when` holds (always, if there is no guard).

    Phases may be given as objects or, where an object is at hand elsewhere in the table, by name.
    """

    source: Phase[Context, Any] | str
    target: Phase[Context, Any] | str
    when: Guard[Context] | None = None

    @property
    def condition(self) -> str:
        """The guard's name; "" if there is none."""
        return "" if self.when is None else self.when.name

    def __str__(self) -> str:
        return f"{name_of(self.source)} -> {name_of(self.target)}" + (
            f" when {name}" if (name := self.condition) else ""
        )


@dataclass(frozen=True, slots=True)
class Signal(Generic[Context]):
    """An input from outside that moves a resting run to the phase `to`.

    It is taken between two steps, at any of the phases `sources` (none named: at every phase that is not final).
    """

    name: str
    to: Phase[Context, Any] | str
    sources: tuple[Phase[Context, Any] | str, ...] = ()


class Edit(Generic[Context, Outcome]):
    """A change that somebody makes to a resting run: like a phase, in two halves, and recorded like one.

    `run` checks the arguments and finds out what they come to; `apply` enters that in the context, and is all that a
    replay calls.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, context: Context, **arguments: Any) -> Outcome:
        """What the arguments come to; raises ValueError when they make no sense."""
        raise NotImplementedError

    def apply(self, context: Context, outcome: Outcome) -> None:
        """Enter it in the context: host fields only."""
        raise NotImplementedError


def name_of(phase: Phase[Any, Any] | str) -> str:
    return phase if isinstance(phase, str) else phase.name


def phases_of(
    start: Phase[Context, Any], transitions: Iterable[Transition[Context]], signals: Iterable[Signal[Context]]
) -> list[Phase[Context, Any]]:
    """Every phase object in the table, in order of appearance."""
    named: list[Phase[Context, Any] | str] = [start]
    for transition in transitions:
        named += [transition.source, transition.target]
    for signal in signals:
        named += [*signal.sources, signal.to]
    return list(dict.fromkeys(phase for phase in named if isinstance(phase, Phase)))
