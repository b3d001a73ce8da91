"""What has happened in a run, in flat columns: the record in memory that steps, rewinding and journals come from."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from statemachine.definition.machine import Machine
from statemachine.definition.program import Arc, Program
from statemachine.execution import host_state

if TYPE_CHECKING:
    from statemachine.record.records import StepRecord

Context = TypeVar("Context")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the phase that ran, what it found out, and where its guards sent the run."""

    number: int
    phase: str
    target: str
    guards: Mapping[str, bool]
    outcome: Any
    elapsed_ns: int = field(compare=False)


class Event(NamedTuple):
    """Something from outside, with the number of the step before which it took effect."""

    number: int
    kind: str  # "signal" or "edit"
    name: str
    outcome: Any = None  # of an edit


@dataclass(slots=True)
class Timeline(Generic[Context]):
    """One entry a step in `arcs`, `outcomes` and `elapsed`; events beside them, in order.

    The context after any number of steps is a fold: the host fields before the first step, then `apply` of every
    outcome and edit since. Nothing here touches a device.
    """

    machine: Machine[Context]
    program: Program[Context]
    origin: dict[Any, Any] = field(default_factory=dict)  # the context's host fields before the first step
    arcs: list[Arc] = field(default_factory=list)
    outcomes: list[Any] = field(default_factory=list)
    elapsed: "array[int]" = field(default_factory=lambda: array("q"))  # ns a step; never compared
    events: list[Event] = field(default_factory=list)
    digests: dict[int, Any] = field(default_factory=dict)  # by number of the step; for as many as were asked for

    def __len__(self) -> int:
        return len(self.elapsed)

    def fold(self, context: Context, number: int, events: Sequence[Event]) -> int:
        """Give the context the host fields it had after `number` steps and these events; returns the phase's index."""
        host_state.restore(context, self.origin)
        index = self.program.index_of(self.machine.start.name)
        rows, coming = self.program.rows, iter(events)
        event = next(coming, None)
        for step in range(number + 1):
            while event is not None and event.number == step:
                if event.kind == "signal":
                    index = self.program.index_of(self.machine.signal_target(event.name))
                else:
                    self.machine.edit(event.name).apply(context, event.outcome)
                event = next(coming, None)
            if step < number:
                arc, outcome = self.arcs[step], self.outcomes[step]
                if outcome is not None:
                    rows[arc.source].apply(context, outcome)
                index = arc.target
        return index

    def step(self, number: int) -> Step:
        """The step of this number."""
        arc, phases = self.arcs[number], self.program.phases
        atoms = self.program.atoms[arc.source]
        guards = {atom.name: bool(arc.guards >> bit & 1) for bit, atom in enumerate(atoms)}
        names = phases[arc.source].name, phases[arc.target].name
        return Step(number, *names, guards, self.outcomes[number], self.elapsed[number])

    def records(self, first: int, last: int) -> "list[StepRecord]":
        """Steps `first` up to `last` as a journal holds them."""
        from statemachine.record.records import StepRecord

        names, digests = [phase.name for phase in self.program.phases], self.digests
        columns = zip(
            range(first, last), self.arcs[first:last], self.outcomes[first:last], self.elapsed[first:last], strict=True
        )
        if not digests:
            return [StepRecord(n=n, p=names[a.source], e=a.transition, g=a.guards, o=o, t=t) for n, a, o, t in columns]
        return [
            StepRecord(n=n, p=names[a.source], e=a.transition, g=a.guards, o=o, d=digests.get(n), t=t)
            for n, a, o, t in columns
        ]

    def events_before(self, number: int) -> list[Event]:
        """The events that took effect before the step before `number`."""
        return [event for event in self.events if event.number < number]

    def cut(self, number: int) -> None:
        """Forget every step from `number` on, and what happened at or after it."""
        self.events = self.events_before(number)
        self.digests = {step: digest for step, digest in self.digests.items() if step < number}
        del self.arcs[number:], self.outcomes[number:], self.elapsed[number:]

    def copy(self, number: int, events: Sequence[Event]) -> "Timeline[Context]":
        """A timeline of its own with the first `number` steps and these events."""
        return Timeline(
            self.machine, self.program, self.origin, self.arcs[:number], self.outcomes[:number], self.elapsed[:number],
            list(events), {step: digest for step, digest in self.digests.items() if step < number},
        )  # fmt: skip
