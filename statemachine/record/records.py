"""The records of a journal: typed, versioned, one a line."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from statemachine.definition.raised import LONGEST
from statemachine.definition.table import arrow
from statemachine.definition.variable import Value

SCHEMA = 2
READABLE = (1, 2)  # 1 had no checksums and no origin

Count = Annotated[int, Meta(ge=0, le=2**53)]
Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(max_length=1000)]


class Record(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """A line of a journal. `t` and `created` are wall time, which is never compared.

    `c` stands at the end of the last line of each write: the CRC-32 of everything before it in the file, so that every
    record has its place in a chain.
    """

    c: Annotated[int, Meta(ge=0, lt=2**32)] | None = None


class TransitionRecord(msgspec.Struct, frozen=True, array_like=True):
    """A row of the table: source, target, the guard's name ("": it has none), and the exceptions that it is for."""

    source: Name
    target: Name
    when: Annotated[str, Meta(max_length=100_000)] = ""
    raises: tuple[Name, ...] = ()

    def __str__(self) -> str:
        return arrow(self.source, self.target, self.raises, self.when)


class SignalRow(msgspec.Struct, frozen=True, array_like=True):
    """A signal of the table: name, target, sources (none: any phase), the guard's name, the type of what it carries."""

    name: Name
    target: Name
    sources: tuple[Name, ...] = ()
    when: Annotated[str, Meta(max_length=100_000)] = ""
    payload: Name = ""

    def __str__(self) -> str:
        carries = f"({self.payload})" if self.payload else ""
        sources = f" from {', '.join(self.sources)}" if self.sources else ""
        return f"{self.name}{carries} to {self.target}{sources}" + (f" when {self.when}" if self.when else "")


if TYPE_CHECKING:
    SignalRows = tuple[SignalRow, ...]
else:  # older records have a dict by name, which is made rows of
    SignalRows = tuple[SignalRow, ...] | dict[Name, tuple[Name, tuple[Name, ...]]]


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine that ran, in words: all that a reader needs to name and draw it. The first phase is the start."""

    name: Name
    fingerprint: Name
    version: Count = 1
    phases: tuple[Name, ...]
    ends: tuple[Name, ...]
    waits: tuple[Name, ...] = ()
    transitions: tuple[TransitionRecord, ...]
    guards: dict[Name, tuple[Name, ...]]  # by phase, in the order in which a step's `g` counts their values
    choices: dict[Name, dict[Name, tuple[Name, ...]]] = {}  # by phase and name: the values of those that are choices
    signals: SignalRows = ()
    edits: tuple[Name, ...] = ()
    edit_sources: dict[Name, tuple[Name, ...]] = {}  # of edits that may not be made at any phase

    def __post_init__(self) -> None:
        if isinstance(self.signals, dict):
            rows = tuple(SignalRow(name, target, sources) for name, (target, sources) in self.signals.items())
            msgspec.structs.force_setattr(self, "signals", rows)

    def variables(self, phase: str) -> list[tuple[str, tuple[Value, ...]]]:
        """The names and values of a phase's guards and choices."""
        choices = self.choices.get(phase, {})
        return [(name, choices.get(name, (False, True))) for name in self.guards.get(phase, ())]


class Header(Record, tag="header"):
    """The first line: everything that can change a bit, what was asked for, and where the run began.

    `origin` holds the context's host fields before the first step, as far as JSON can (the others are `opaque`);
    `began` holds those with which it all began, if that past was left behind. `first` and `phase` are 0 and the start
    unless the run was restored without its past, or forgets it; `digestible` is then how many of the steps before count
    where a digest is due.
    """

    schema: int
    run: Name
    created: Name
    machine: MachineRecord
    environment: dict[str, Any]
    request: Any = None
    digest_every: Count = 0
    forked_from: Name | None = None
    resumed: dict[str, Any] | None = None
    first: Count = 0
    digestible: Count = 0
    phase: Name = ""
    origin: dict[str, Any] | None = None
    began: dict[str, Any] | None = None
    opaque: tuple[Name, ...] = ()


class RaisedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a phase raised: the class that the table lists, the exception's own, and what it said."""

    way: Name
    exception: Name
    message: Annotated[str, Meta(max_length=LONGEST)] = ""


class StepRecord(Record, tag="s"):
    """One step: number, phase, transition's number, row of the truth table, outcome or what was raised, digest; ns."""

    n: Count
    p: Name
    e: Count
    g: Annotated[int, Meta(ge=0, lt=2**16)] = 0
    o: Any = None
    x: RaisedRecord | None = None
    d: Any = None
    t: Nanoseconds = 0


class SignalRecord(Record, tag="signal"):
    """A signal, what it carried, and the number of the step before which it took effect."""

    n: Count
    name: Name
    o: Any = None


class RefusedRecord(Record, tag="refused"):
    """A signal that was sent and had no effect, and why: the run ended first, or its payload could not be entered."""

    n: Count
    name: Name
    o: Any = None
    why: Annotated[str, Meta(max_length=10_000)] = ""


class EditRecord(Record, tag="edit"):
    """An edit, what it came to, and the number of the step before which it took effect."""

    n: Count
    name: Name
    o: Any = None


class PauseRecord(Record, tag="pause"):
    """The run rested for a while before step `n`, at phase `p`, with these signals sent and not yet taken.

    Each is its name, or its name and what it carries.

    They wait until a signal's record takes them, or another pause says otherwise; when they change while the run is
    driven, this is written too.
    """

    n: Count
    p: Name = ""
    pending: tuple[str | tuple[str, Any], ...] = ()  # of names that the header has, so none is long

    @property
    def sent(self) -> list[tuple[str, Any]]:
        """Those signals, each with what it carries."""
        return [(entry, None) if isinstance(entry, str) else entry for entry in self.pending]


class GotoRecord(Record, tag="goto"):
    """The run went back to before step `n` and on from there: what was recorded from `n` on no longer counts."""

    n: Count


class ErrorRecord(Record, tag="error"):
    """The run failed in step `n`; `outside`: not of its phase, but of an interrupt that came from outside."""

    n: Count
    p: Name
    exception: Name
    message: Annotated[str, Meta(max_length=10_000)]
    outside: bool = False


class EndRecord(Record, tag="end"):
    """The run ended after `n` steps."""

    n: Count
    status: Literal["done", "failed", "cancelled"]


BodyRecord = StepRecord | SignalRecord | RefusedRecord | EditRecord | PauseRecord | GotoRecord | ErrorRecord | EndRecord
AnyRecord = Header | BodyRecord

decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)
