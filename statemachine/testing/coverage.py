"""Which transitions, rows of guard values, signals and edits of a machine were seen, and which never."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from statemachine.definition.check import atoms_of, rows_of
from statemachine.definition.machine import Machine
from statemachine.definition.table import name_of
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
    rows
        By phase and guard values, e.g. `("draw", "odd & ~far_enough")`. Values that exclude each other are never seen.
    signals
        By name.
    edits
        By name.
    refused
        Signals that were sent and had no effect, by name.
    """

    transitions: Counter[str] = field(default_factory=Counter)
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
        for phase in machine.phases:
            atoms = atoms_of([way for way in machine.transitions if name_of(way.source) == phase])
            rows = len(list(rows_of(atoms))) if atoms else 0
            found.rows.update(dict.fromkeys(((phase, _values([a.name for a in atoms], row)) for row in range(rows)), 0))
        return found

    def add(self, machine: Machine[Any], records: Iterable[BodyRecord]) -> None:
        """Count what a record shows."""
        atoms = [[atom.name for atom in own] for own in machine.program().atoms]
        guards = dict(zip(machine.phases, atoms, strict=True))
        for record in records:
            if isinstance(record, StepRecord):
                self.transitions[str(machine.transitions[record.e])] += 1
                if names := guards[record.p]:
                    self.rows[record.p, _values(names, record.g)] += 1
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
            "rows": [f"{phase}: {values}" for (phase, values), count in self.rows.items() if not count],
            "signals": [name for name, count in self.signals.items() if not count],
            "edits": [name for name, count in self.edits.items() if not count],
        }
        return {kind: names for kind, names in found.items() if names}

    def __str__(self) -> str:
        lines = []
        for kind in ("transitions", "rows", "signals", "edits"):
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


def _values(names: list[str], bits: int) -> str:
    return " & ".join(name if bits >> bit & 1 else f"~{name}" for bit, name in enumerate(names))
