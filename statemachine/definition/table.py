"""The rows of a machine's table: guarded transitions, signals from outside, and edits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase, declared_outcome

Context = TypeVar("Context")
Outcome = TypeVar("Outcome")
if TYPE_CHECKING:  # a signal that carries nothing need not say so
    from typing_extensions import TypeVar as TypeVarWithDefault

    Payload = TypeVarWithDefault("Payload", default=None)
else:
    Payload = TypeVar("Payload")

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
class Signal(Generic[Context, Payload]):
    """An input from outside that moves a resting run to the phase `to`.

    It is taken between two steps, at any of the phases `sources` (none named: at every phase that is not final), while
    the guard `when` holds (always, if there is none). Several signals of one name, with sources of their own each, lead
    to where the phase says at which the name is sent.

    A subclass that has an `apply` carries a payload of the type that it declares, as in
    `class Approve(Signal[Order, Approval])`; those of one name carry the same type. One that declares None is sent with
    nothing, and enters what it knows itself.
    """

    name: str
    to: Phase[Context, Any] | str
    sources: tuple[Phase[Context, Any] | str, ...] = ()
    when: Guard[Context] | None = None

    def apply(self, context: Context, payload: Payload) -> None:
        """Enter the payload in the context: pure host bookkeeping, as in a phase."""

    @property
    def carries(self) -> bool:
        """Whether there is something to enter."""
        return type(self).apply is not Signal.apply

    @property
    def payload_type(self) -> Any:
        """The type of what it carries: what the class declares, NoneType if it carries nothing."""
        return declared_outcome(type(self), Signal) if self.carries else NoneType

    @property
    def payload(self) -> str:
        """That type in words; "" if there is nothing to send along."""
        return "" if self.payload_type is NoneType else words_of(self.payload_type)

    @property
    def condition(self) -> str:
        """The guard's name; "" if there is none."""
        return "" if self.when is None else self.when.name

    def __str__(self) -> str:
        sources = ", ".join(map(name_of, self.sources))
        return (
            f"{self.name}{f'({self.payload})' if self.payload else ''}: {sources or 'any phase'} -> {name_of(self.to)}"
            + (f" when {name}" if (name := self.condition) else "")
        )


class Edit(Generic[Context, Outcome]):
    """A change that somebody makes to a resting run: like a phase, in two halves, and recorded like one.

    `run` checks the arguments and finds out what they come to; `apply` enters that in the context, and is all that a
    replay calls.

    Parameters
    ----------
    name
        What `Run.edit` calls it.
    sources
        The phases at which it may be made; none named: wherever a run rests.
    """

    def __init__(self, name: str, *, sources: tuple[Phase[Context, Any] | str, ...] = ()) -> None:
        self.name = name
        self.sources = tuple(sources)

    def may_be_made_at(self, phase: str) -> bool:
        """Whether the phase of this name is one of its sources."""
        return not self.sources or phase in map(name_of, self.sources)

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


def words_of(declared: Any) -> str:
    """A declared type as a message or a label shows it."""
    return declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)


def phases_of(
    start: Phase[Context, Any], transitions: Iterable[Transition[Context]], signals: Iterable[Signal[Context, Any]]
) -> list[Phase[Context, Any]]:
    """Every phase object in the table, in order of appearance."""
    named: list[Phase[Context, Any] | str] = [start]
    for transition in transitions:
        named += [transition.source, transition.target]
    for signal in signals:
        named += [*signal.sources, signal.to]
    return list(dict.fromkeys(phase for phase in named if isinstance(phase, Phase)))
