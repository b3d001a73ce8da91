"""A machine in words, for drawing: what both a Machine and the header of a journal can tell."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from statemachine.definition.phase import Wait
from statemachine.definition.table import arrow, label, name_of
from statemachine.errors import JournalError

if TYPE_CHECKING:
    from statemachine.definition.machine import Machine
    from statemachine.record.records import MachineRecord


class Arrow(NamedTuple):
    """A transition, the name of its guard ("": it has none), and the exceptions that it is for."""

    source: str
    target: str
    guard: str = ""
    errors: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What leads along it, in words."""
        return label(self.errors, self.guard)

    def __str__(self) -> str:
        return arrow(self.source, self.target, self.errors, self.guard)


class SignalArrow(NamedTuple):
    """A signal from a phase to a phase; source None is any phase. What it carries, and its guard's name, in words."""

    name: str
    source: str | None
    target: str
    payload: str = ""
    guard: str = ""

    def __str__(self) -> str:
        carries = f"({self.payload})" if self.payload else ""
        return f"{self.name}{carries}" + (f" when {self.guard}" if self.guard else "")


@dataclass(frozen=True, slots=True)
class Chart:
    """Names of phases in order of appearance, the first one the start, and the arrows between them."""

    name: str
    phases: tuple[str, ...]
    start: str
    ends: frozenset[str]
    arrows: tuple[Arrow, ...]  # by the transition's number
    signals: tuple[SignalArrow, ...] = ()
    waits: frozenset[str] = frozenset()  # the phases that wait for an answer

    @classmethod
    def of(cls, machine: "Machine[Any]") -> "Chart":
        """The chart of a machine."""
        phases = machine.phases
        arrows = [
            Arrow(name_of(way.source), name_of(way.target), way.condition, way.errors) for way in machine.transitions
        ]
        signals = []
        for signal in machine.signals:
            sources: list[str | None] = [name_of(source) for source in signal.sources]
            signals += [
                SignalArrow(signal.name, source, name_of(signal.to), signal.payload, signal.condition)
                for source in sources or [None]
            ]
        ends = frozenset(name for name, phase in phases.items() if phase.final)
        waits = frozenset(name for name, phase in phases.items() if isinstance(phase, Wait))
        return cls(machine.name, tuple(phases), machine.start.name, ends, tuple(arrows), tuple(signals), waits)

    @classmethod
    def of_record(cls, record: "MachineRecord") -> "Chart":
        """The chart of a recorded machine, which need not be at hand.

        Raises
        ------
        JournalError
            When the header's transitions or signals do not join its phases.
        """
        arrows = tuple(Arrow(way.source, way.target, way.when, way.raises) for way in record.transitions)
        signals = []
        for row in record.signals:
            sources: list[str | None] = [*row.sources]
            signals += [
                SignalArrow(row.name, source, row.target, row.payload, row.when) for source in sources or [None]
            ]
        named = {name for arrow in arrows for name in arrow[:2]} | {
            name for signal in signals for name in (signal.source, signal.target) if name
        }
        if not record.phases or not named | {*record.ends, *record.waits} <= set(record.phases):
            raise JournalError(f"the header of a journal of {record.name!r} is damaged: its table names other phases")
        ends, waits = frozenset(record.ends), frozenset(record.waits)
        return cls(record.name, record.phases, record.phases[0], ends, arrows, tuple(signals), waits)
