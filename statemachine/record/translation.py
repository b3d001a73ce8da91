"""Reads the records of an earlier version of a machine in the words of the present one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from statemachine.definition.machine import Machine
from statemachine.definition.migration import Migration
from statemachine.errors import JournalError
from statemachine.record.exact import plain, shown
from statemachine.record.records import (
    BodyRecord,
    EditRecord,
    ErrorRecord,
    Header,
    MachineRecord,
    PauseRecord,
    RaisedRecord,
    RefusedRecord,
    SignalRecord,
    SignalRow,
    StepRecord,
    TransitionRecord,
)


class Translation:
    """What the migrations between a record's version and a machine's come to, one after the other.

    Attributes
    ----------
    machine
        The recorded machine, in the words of the present one.

    Raises
    ------
    JournalError
        When a later version of the machine made the record.
    """

    def __init__(self, header: Header, machine: Machine[Any]) -> None:
        recorded = header.machine
        if recorded.name == machine.name and recorded.version > machine.version:
            raise JournalError(
                f"version {recorded.version} of machine {machine.name!r} recorded this, and here is version "
                f"{machine.version}: use that one, or a newer one"
            )
        self._steps = [step for step in machine.migrations if step.version >= recorded.version]
        self.machine = recorded if not self._steps else self._translated(recorded)
        self.phase_at_start = self.phase(header.phase) if header.phase else self.machine.phases[0]

    def phase(self, name: str) -> str:
        """What a phase is called now."""
        return _renamed(name, [step.phases for step in self._steps])

    def signal(self, name: str) -> str:
        """What a signal is called now."""
        return _renamed(name, [step.signals for step in self._steps])

    def edit(self, name: str) -> str:
        """What an edit is called now."""
        return _renamed(name, [step.edits for step in self._steps])

    def fields(self, held: Mapping[str, Any]) -> Mapping[str, Any]:
        """Host fields as the present version would have them; raises JournalError if a migration fails."""
        for step in self._steps:
            if step.context:
                try:
                    held = plain(step.context(held))
                    if not isinstance(held, dict):
                        raise TypeError(f"it gave {held!r}, no dict of fields")
                except Exception as error:
                    raise JournalError(
                        f"the migration of version {step.version} cannot read the context: {shown(repr(error))}"
                    ) from error
        return held

    def record(self, record: BodyRecord) -> BodyRecord:
        """A record as the present version would have written it; raises JournalError if a migration fails."""
        if not self._steps:
            return record
        if isinstance(record, StepRecord):
            outcome = self._outcome(record.p, record.o, lambda step: step.phases)
            raised = self._raised(record.x) if record.x else None
            return msgspec.structs.replace(record, p=self.phase(record.p), o=outcome, x=raised)
        if isinstance(record, EditRecord):
            outcome = self._outcome(record.name, record.o, lambda step: step.edits)
            return msgspec.structs.replace(record, name=self.edit(record.name), o=outcome)
        if isinstance(record, SignalRecord | RefusedRecord):
            return msgspec.structs.replace(
                record, name=self.signal(record.name), o=self._payload(record.name, record.o)
            )
        if isinstance(record, ErrorRecord):
            return msgspec.structs.replace(record, p=self.phase(record.p), exception=self.error(record.exception))
        if isinstance(record, PauseRecord):
            pending = tuple((self.signal(name), self._payload(name, payload)) for name, payload in record.sent)
            return msgspec.structs.replace(record, p=self.phase(record.p), pending=pending)
        return record

    def error(self, name: str) -> str:
        """What a class of exceptions is called now."""
        return _renamed(name, [step.errors for step in self._steps])

    def _raised(self, record: RaisedRecord) -> RaisedRecord:
        return RaisedRecord(self.error(record.way), self.error(record.exception), record.message)

    def _payload(self, name: str, payload: Any) -> Any:
        return self._outcome(name, payload, lambda step: step.signals)

    def _outcome(self, owner: str, outcome: Any, names: Callable[[Migration], Mapping[str, str]]) -> Any:
        for step in self._steps:
            if outcome is not None and owner in step.outcomes:
                try:
                    outcome = plain(step.outcomes[owner](outcome))
                except Exception as error:
                    raise JournalError(
                        f"the migration of version {step.version} cannot read the outcome {shown(outcome)} of "
                        f"{owner!r}: {shown(repr(error))}"
                    ) from error
            owner = names(step).get(owner, owner)
        return outcome

    def _translated(self, machine: MachineRecord) -> MachineRecord:
        def all_phases(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(map(self.phase, names))

        guards = [step.guards for step in self._steps]
        return msgspec.structs.replace(
            machine,
            phases=all_phases(machine.phases),
            ends=all_phases(machine.ends),
            waits=all_phases(machine.waits),
            transitions=tuple(
                TransitionRecord(
                    self.phase(way.source), self.phase(way.target), way.when, tuple(map(self.error, way.raises))
                )
                for way in machine.transitions
            ),
            guards={
                self.phase(name): tuple(_renamed(guard, guards) for guard in names)
                for name, names in machine.guards.items()
            },
            choices={
                self.phase(name): {_renamed(choice, guards): values for choice, values in choices.items()}
                for name, choices in machine.choices.items()
            },
            signals=tuple(
                SignalRow(self.signal(row.name), self.phase(row.target), all_phases(row.sources), row.when, row.payload)
                for row in machine.signals
            ),
            edits=tuple(map(self.edit, machine.edits)),
            edit_sources={self.edit(name): all_phases(sources) for name, sources in machine.edit_sources.items()},
        )


def _renamed(name: str, renames: Sequence[Mapping[str, str]]) -> str:
    for names in renames:
        name = names.get(name, name)
    return name
