"""The one place that decides whether what a journal says can be: each record beside the header and those before it."""

from statemachine.definition.variable import row_count
from statemachine.record.exact import shown
from statemachine.record.records import (
    BodyRecord,
    EditRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    Header,
    MachineRecord,
    PauseRecord,
    RefusedRecord,
    SignalRecord,
    StepRecord,
)

MOST_CASES = 2**16  # of the guards and choices of a phase


def complaint_of_header(header: Header) -> str | None:
    """What is wrong with a header, if anything is."""
    machine = header.machine
    if header.schema > 1 and header.origin is None:
        return "it does not say with what fields the context began"
    phases = set(machine.phases)
    named = {name for way in machine.transitions for name in (way.source, way.target)}
    named |= {name for row in machine.signals for name in (row.target, *row.sources)}
    named |= {name for sources in machine.edit_sources.values() for name in sources}
    named |= {*machine.ends, *machine.waits, *machine.guards, *machine.choices} | ({header.phase} - {""})
    if not machine.phases or len(phases) != len(machine.phases):
        return "its machine has no phases, or one twice"
    if unknown := sorted(named - phases):
        return f"its table names {shown(unknown)}, which are none of its phases"
    guards = {name for names in machine.guards.values() for name in names}
    errors = {name for way in machine.transitions for name in way.raises}
    ways = {way.when for way in machine.transitions}
    values = {value for choices in machine.choices.values() for own in choices.values() for value in own}
    names = {machine.name, machine.fingerprint, header.run, *machine.edits, *machine.edit_sources}
    names |= {word for row in machine.signals for word in (row.name, row.when, row.payload)}
    names |= phases | guards | values | ways | errors
    if odd := sorted(name for name in names if not name.isprintable()):
        return f"the name {shown(odd[0])!r} holds control characters"
    for phase in machine.guards.keys() | machine.choices.keys():
        if complaint := _complaint_of_variables(machine, phase):
            return f"phase {shown(phase)!r} {complaint}"
    return None


def _complaint_of_variables(machine: MachineRecord, phase: str) -> str | None:
    names, choices = machine.guards.get(phase, ()), machine.choices.get(phase, {})
    if len(set(names)) != len(names):
        return "has two guards or choices of one name"
    if odd := sorted(choices.keys() - set(names)):
        return f"has values for {shown(odd[0])!r}, by which it does not choose"
    if odd := sorted(name for name, values in choices.items() if not values or len(set(values)) != len(values)):
        return f"has a choice {shown(odd[0])!r} with no values, or one twice"
    if (cases := row_count(values for _, values in machine.variables(phase))) > MOST_CASES:
        return f"has guards with {cases} cases, at most {MOST_CASES} can be"
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
        way = machine.transitions[record.e]
        if way.source != record.p:
            return f"takes transition [{shown(str(way))}] from phase {shown(record.p)!r}"
        if way.raises and record.x is None:
            return f"takes transition [{shown(str(way))}], but nothing was raised"
        if record.x is not None and record.x.way not in way.raises:
            return f"takes transition [{shown(str(way))}], which is not for {shown(record.x.way)}"
        if record.x is not None and record.o is not None:
            return f"has an outcome, and says that {shown(record.x.exception)} was raised"
        if record.g >= (cases := row_count(values for _, values in machine.variables(record.p))):
            return f"has case {record.g} of the guards of phase {shown(record.p)!r}, which have {cases}"
        return None


def _kind(record: BodyRecord) -> str:
    return type(record).__name__.removesuffix("Record").lower()
