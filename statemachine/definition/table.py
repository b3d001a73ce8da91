"""The rows of a machine's table: guarded transitions, signals from outside, and edits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase

Context = TypeVar("Context")
Outcome = TypeVar("Outcome")

ADVANCE = "advance"  # the event that leaves a phase after it ran; each signal is an event of its own
RAISED = f"{ADVANCE} on "  # and the name of a class: the event that leaves a phase that raised it


@dataclass(frozen=True, slots=True)
class Transition(Generic[Context]):
    """From `source` to `target`, taken after `source` ran if `when` holds (always, if there is no guard).

    Phases may be given as objects or, where an object is at hand elsewhere in the table, by name.

    With `raises`, a class of exceptions or several, it is an error way: taken instead when `source` raised one of
    those in `run`. The ways for a class must be complete and exclusive over it, as those without one are.
    """

    source: Phase[Context, Any] | str
    target: Phase[Context, Any] | str
    when: Guard[Context] | None = None
    raises: type[Exception] | tuple[type[Exception], ...] = ()

    @property
    def condition(self) -> str:
        """The guard's name; "" if there is none."""
        return "" if self.when is None else self.when.name

    @property
    def classes(self) -> tuple[type[Exception], ...]:
        """The classes of exceptions that it is for."""
        return tuple(dict.fromkeys(self.raises if isinstance(self.raises, tuple) else (self.raises,)))

    @property
    def errors(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(kind.__name__ for kind in self.classes)

    def __str__(self) -> str:
        return arrow(name_of(self.source), name_of(self.target), self.errors, self.condition)


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


def label(errors: Iterable[str], condition: str) -> str:
    """What leads along a way, in words: its guard, or `on GatewayDown when tries_left`."""
    words = " | ".join(errors)
    return condition if not words else f"on {words}" + (f" when {condition}" if condition else "")


def arrow(source: str, target: str, errors: Sequence[str], condition: str) -> str:
    """A way in words: `charge -> back_off on GatewayDown when tries_left`."""
    words = label(errors, condition)
    return f"{source} -> {target}" + (" " if errors else " when ") * bool(words) + words


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
