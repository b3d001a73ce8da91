"""Which transitions, rows of guard values, signals and edits of a machine were seen, and which never."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from statemachine.definition.machine import Machine
from statemachine.definition.variable import in_words, rows_of, values_at
from statemachine.execution.run import Run
from statemachine.record.header import step_records
from statemachine.record.journal import Journal
from statemachine.record.records import BodyRecord, EditRecord, RefusedRecord, SignalRecord, StepRecord
from statemachine.record.writer import event_record


@dataclass(slots=True)
class Coverage:
    """How often each thing that a machine can do was seen.

    Attributes
    ----------
    transitions
        By their text, in the order of the table.
    errors
        By phase and class of exceptions that it has a way for, e.g. `("charge", "GatewayDown")`.
    rows
        By phase and values of its guards and choices, e.g. `("draw", "odd & ~far_enough")`. Values that exclude each
        other are never seen.
    signals
        By name.
    edits
        By name.
    refused
        Signals that were sent and had no effect, by name.
    """

    transitions: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, machine: Machine[Any]) -> "Coverage":
        """What there is to be seen of a machine, and nothing seen yet."""
        found = cls()
        found.transitions.update(dict.fromkeys(map(str, machine.transitions), 0))
        found.signals.update(dict.fromkeys((signal.name for signal in machine.signals), 0))
        found.edits.update(dict.fromkeys((edit.name for edit in machine.edits), 0))
        program = machine.program()
        for phase, atoms, ways in zip(machine.phases, program.atoms, program.ways, strict=True):
            found.errors.update(dict.fromkeys(((phase, name) for name in ways), 0))
            if atoms:
                found.rows.update(dict.fromkeys(((phase, in_words(values)) for values in rows_of(atoms)), 0))
        return found

    def add(self, machine: Machine[Any], records: Iterable[BodyRecord]) -> None:
        """Count what a record shows."""
        atoms = [[(atom.name, atom.values) for atom in own] for own in machine.program().atoms]
        guards = dict(zip(machine.phases, atoms, strict=True))
        for record in records:
            if isinstance(record, StepRecord):
                self.transitions[str(machine.transitions[record.e])] += 1
                if record.x:
                    self.errors[record.p, record.x.way] += 1
                if own := guards[record.p]:
                    self.rows[record.p, in_words(values_at(record.g, own))] += 1
            elif isinstance(record, SignalRecord):
                self.signals[record.name] += 1
            elif isinstance(record, RefusedRecord):
                self.refused[record.name] += 1
            elif isinstance(record, EditRecord):
                self.edits[record.name] += 1

    @property
    def never(self) -> dict[str, list[str]]:
        """What was never seen, by kind."""
        found = {
            "transitions": [name for name, count in self.transitions.items() if not count],
            "errors": [f"{phase}: {name}" for (phase, name), count in self.errors.items() if not count],
            "rows": [f"{phase}: {values}" for (phase, values), count in self.rows.items() if not count],
            "signals": [name for name, count in self.signals.items() if not count],
            "edits": [name for name, count in self.edits.items() if not count],
        }
        return {kind: names for kind, names in found.items() if names}

    def __str__(self) -> str:
        lines = []
        for kind in ("transitions", "errors", "rows", "signals", "edits"):
            counts: Counter[Any] = getattr(self, kind)
            if counts:
                lines.append(f"{kind}: {sum(map(bool, counts.values()))} of {len(counts)} seen")
                lines += [f"  never: {name}" for name in self.never.get(kind, ())]
        lines += [f"refused: {name}, {count} times" for name, count in self.refused.items()]
        return "\n".join(lines)


def coverage(records: Journal | Run[Any] | Iterable[Journal | Run[Any]], machine: Machine[Any]) -> Coverage:
    """What journals and runs of a machine have seen of it.

    Raises
    ------
    ValueError
        When one of them is of another machine.
    """
    found = Coverage.of(machine)
    for record in [records] if isinstance(records, Journal | Run) else records:
        theirs = record.machine.fingerprint if isinstance(record, Run) else record.header.machine.fingerprint
        if theirs != machine.fingerprint:
            raise ValueError(f"{record!r:.200} is of another machine than {machine.name!r}: its table differs")
        found.add(machine, _records_of(record) if isinstance(record, Run) else record.records())
    return found


def _records_of(run: Run[Any]) -> Iterable[BodyRecord]:
    yield from step_records(run.timeline, run.timeline.first, run.recorded_steps)
    yield from map(event_record, run.events)
