"""The one place that decides whether what a journal says can be: each record beside the header and those before it."""

from statemachine.record.exact import shown
from statemachine.record.records import (
    BodyRecord,
    EditRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    Header,
    PauseRecord,
    RefusedRecord,
    SignalRecord,
    StepRecord,
)


def complaint_of_header(header: Header) -> str | None:
    """What is wrong with a header, if anything is."""
    machine = header.machine
    if header.schema > 1 and header.origin is None:
        return "it does not say with what fields the context began"
    phases = set(machine.phases)
    named = {name for way in machine.transitions for name in (way.source, way.target)}
    named |= {name for row in machine.signals for name in (row.target, *row.sources)}
    named |= {name for sources in machine.edit_sources.values() for name in sources}
    named |= {*machine.ends, *machine.waits, *machine.guards} | ({header.phase} - {""})
    if not machine.phases or len(phases) != len(machine.phases):
        return "its machine has no phases, or one twice"
    if unknown := sorted(named - phases):
        return f"its table names {shown(unknown)}, which are none of its phases"
    guards = {name for names in machine.guards.values() for name in names}
    ways = {way.when for way in machine.transitions}
    names = {machine.name, machine.fingerprint, header.run, *phases, *guards, *ways, *machine.edits}
    names |= {*machine.edit_sources, *(word for row in machine.signals for word in (row.name, row.when, row.payload))}
    if odd := sorted(name for name in names if not name.isprintable()):
        return f"the name {shown(odd[0])!r} holds control characters"
    if wide := [name for name, guards in machine.guards.items() if len(guards) > 16]:
        return f"phase {shown(wide[0])!r} has {len(machine.guards[wide[0]])} guards, at most 16 can be"
    return None


class Validator:
    """Checks the records of one journal in their order."""

    def __init__(self, header: Header) -> None:
        self._machine = header.machine
        self._signals = {row.name for row in header.machine.signals}
        self._first = self._coming = header.first
        self._ended = False  # only going back can follow an end
        self._failed = False  # an error is followed by the end

    def complaint(self, record: BodyRecord) -> str | None:
        """What is wrong with the next record, if anything is."""
        if isinstance(record, GotoRecord):
            return self._goto(record)
        if self._ended:
            return f"a {_kind(record)} record follows the end"
        if record.n != self._coming:
            return f"belongs to step {record.n}, but step {self._coming} was expected: lines are missing or doubled"
        if self._failed and not isinstance(record, EndRecord):
            return f"a {_kind(record)} record follows an error"
        machine = self._machine
        if isinstance(record, StepRecord):
            self._coming += 1
            return self._step(record)
        if isinstance(record, SignalRecord | RefusedRecord) and record.name not in self._signals:
            return f"names signal {shown(record.name)!r}, which the header does not"
        if isinstance(record, EditRecord) and record.name not in machine.edits:
            return f"names edit {shown(record.name)!r}, which the header does not"
        if isinstance(record, PauseRecord):
            if record.p and record.p not in machine.phases:
                return f"rests at phase {shown(record.p)!r}, which the header does not name"
            if unknown := {name for name, _ in record.sent} - self._signals:
                return f"has signal {shown(min(unknown))!r} pending, which the header does not name"
        if isinstance(record, ErrorRecord):
            self._failed = True
            if record.p not in machine.phases:
                return f"names phase {shown(record.p)!r}, which the header does not"
        if isinstance(record, EndRecord):
            if self._failed and record.status != "failed":
                return f"ends {record.status} after an error"
            self._ended, self._failed = True, False
        return None

    def _goto(self, record: GotoRecord) -> str | None:
        if not self._first <= record.n <= self._coming:
            return f"goes back to step {record.n}, but there are {self._coming}"
        self._coming, self._ended, self._failed = record.n, False, False
        return None

    def _step(self, record: StepRecord) -> str | None:
        machine = self._machine
        if record.p not in machine.phases:
            return f"names phase {shown(record.p)!r}, which the header does not"
        if record.e >= len(machine.transitions):
            return f"names transition {record.e}, but the header has {len(machine.transitions)}"
        if machine.transitions[record.e].source != record.p:
            return f"takes transition [{shown(str(machine.transitions[record.e]))}] from phase {shown(record.p)!r}"
        if record.g >> len(machine.guards.get(record.p, ())):
            return f"has guard values {record.g:#b} at phase {shown(record.p)!r}, which has fewer guards"
        return None


def _kind(record: BodyRecord) -> str:
    return type(record).__name__.removesuffix("Record").lower()
