"""The records of a journal: typed, versioned, one a line."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import msgspec

from statemachine.definition.phase import Phase, declared_outcome
from statemachine.definition.table import Edit, name_of
from statemachine.errors import JournalError

if TYPE_CHECKING:
    from statemachine.execution.run import Run

SCHEMA = 1


class Record(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """A line of a journal. `t` and `created` are wall time, which is never compared."""


class TransitionRecord(msgspec.Struct, frozen=True, array_like=True):
    """A row of the table: source, target, and the guard's name ("": it has none)."""

    source: str
    target: str
    when: str = ""

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}" + (f" when {self.when}" if self.when else "")


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine that ran, in words: all that a reader needs to name and draw it. The first phase is the start."""

    name: str
    fingerprint: str
    phases: tuple[str, ...]
    ends: tuple[str, ...]
    transitions: tuple[TransitionRecord, ...]
    guards: dict[str, tuple[str, ...]]  # by phase, in the order of the bits of a step's `g`
    signals: dict[str, tuple[str, tuple[str, ...]]] = {}  # by name: the target, and the sources (none: any phase)
    edits: tuple[str, ...] = ()


class Header(Record, tag="header"):
    """The first line: everything that can change a bit, and what was asked for."""

    schema: int
    run: str
    created: str
    machine: MachineRecord
    environment: dict[str, Any]
    request: Any = None
    digest_every: int = 0
    forked_from: str | None = None
    resumed: dict[str, Any] | None = None


class StepRecord(Record, tag="s"):
    """One step: number, phase, number of the transition, guard bits, outcome, digest; and ns."""

    n: int
    p: str
    e: int
    g: int = 0
    o: Any = None
    d: Any = None
    t: int = 0


class SignalRecord(Record, tag="signal"):
    """A signal and the number of the step before which it took effect."""

    n: int
    name: str


class EditRecord(Record, tag="edit"):
    """An edit, what it came to, and the number of the step before which it took effect."""

    n: int
    name: str
    o: Any = None


class PauseRecord(Record, tag="pause"):
    """The run rested for a while before step `n`."""

    n: int


class GotoRecord(Record, tag="goto"):
    """The run went back to before step `n` and on from there: what was recorded from `n` on no longer counts."""

    n: int


class ErrorRecord(Record, tag="error"):
    """The run failed in step `n`."""

    n: int
    p: str
    exception: str
    message: str


class EndRecord(Record, tag="end"):
    """The run ended after `n` steps."""

    n: int
    status: str


BodyRecord = StepRecord | SignalRecord | EditRecord | PauseRecord | GotoRecord | ErrorRecord | EndRecord
AnyRecord = Header | BodyRecord

encoder = msgspec.json.Encoder()
decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def plain(value: Any) -> Any:
    """A value as it looks after it has been written to a journal and read again."""
    return msgspec.json.decode(encoder.encode(value))


def typed(value: Any, owner: Phase[Any, Any] | Edit[Any, Any]) -> Any:
    """An outcome read from a journal, in the type that its phase or edit declares; JournalError if it has none such."""
    if value is None:
        return None
    try:
        return msgspec.convert(value, declared_outcome(type(owner), Phase if isinstance(owner, Phase) else Edit))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise JournalError(f"{value!r:.200} is no outcome of {owner.name!r}: {error}") from error


def header_of(run: "Run[Any]") -> Header:
    """The header of a run's journal."""
    program = run.machine.program()
    guards = {
        phase.name: tuple(atom.name for atom in atoms)
        for phase, atoms in zip(program.phases, program.atoms, strict=True)
        if atoms
    }
    return Header(
        schema=SCHEMA,
        run=run.id,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        machine=MachineRecord(
            name=run.machine.name,
            fingerprint=run.machine.fingerprint,
            phases=tuple(run.machine.phases),
            ends=tuple(phase.name for phase in program.phases if phase.final),
            transitions=tuple(
                TransitionRecord(name_of(way.source), name_of(way.target), way.when.name if way.when else "")
                for way in run.machine.transitions
            ),
            guards=guards,
            signals={s.name: (name_of(s.to), tuple(map(name_of, s.sources))) for s in run.machine.signals},
            edits=tuple(edit.name for edit in run.machine.edits),
        ),
        environment=_libraries() | run.resources.environment(),
        request=run.request,
        digest_every=run.digest_every,
        forked_from=run.forked_from,
        resumed=run.resumed,
    )


def _libraries() -> dict[str, Any]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("phasewalk", "transitions"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
