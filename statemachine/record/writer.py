"""Writes a journal: a run's record on disk, append-only JSON Lines in a chain of checksums."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import msgspec

from statemachine.definition.phase import Status
from statemachine.errors import JournalError, message_of
from statemachine.execution.recorder import Account
from statemachine.execution.timeline import Event
from statemachine.record import exact
from statemachine.record.growing import GrowingFile
from statemachine.record.header import header_of, step_records
from statemachine.record.journal import Journal
from statemachine.record.records import (
    EditRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    PauseRecord,
    Record,
    RefusedRecord,
    SignalRecord,
    StepRecord,
)
from statemachine.record.validate import complaint_of_header

CHUNK = 4096  # steps encoded at once
EVENTS = SignalRecord | RefusedRecord | EditRecord


class JournalWriter:
    """Writes one run's journal, whenever the run tells it to.

    What happened since the last time is handed to the system by one write, whose last line carries the checksum of
    everything before it: a process that is killed loses at most what it had not yet written, and what is damaged later
    is found. A run that is driven tells at least every 50 ms, and whenever it rests; a loop over a run rests at each
    step, a loop over the steps of a phase at each of those.

    Parameters
    ----------
    path
        A file that does not exist yet.
    every
        "step": each step is in the file before the next phase runs, so that no finished step is ever lost to a kill.
    sync
        Wait until each write is on the disk itself, so that a power failure loses no more than a kill does.
    on_full
        "fail": a journal that cannot be written fails the run. "drop": the run goes on without, with a warning.
    new
        False goes on in a file that exists, which `recover` has brought its run to the end of.

    Raises
    ------
    JournalError
        When the file exists or cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: Literal["50 ms", "step"] = "50 ms",
        sync: bool = False,
        on_full: Literal["fail", "drop"] = "fail",
        new: bool = True,
    ) -> None:
        if every not in ("50 ms", "step") or on_full not in ("fail", "drop"):
            raise ValueError(f'expected every "50 ms" or "step", on_full "fail" or "drop", not {every!r}, {on_full!r}')
        self.path = Path(path)
        self._place = self.path.absolute()  # wherever the process goes
        self.every_step = every == "step"
        self._drop = on_full == "drop"
        self._run: str | None = None
        self._done = _Progress()
        self._owed: tuple[bytes, _Progress] | None = None  # what is to be written, and where that leads
        self._file: GrowingFile | None = GrowingFile(self.path, new=new, sync=sync)

    def attach(self, run_id: str) -> None:
        """Record this run; raises JournalError if another one is recorded here."""
        if self._run is not None:
            raise JournalError(f"the journal {self.path} records run {self._run} already: give each run its own")
        self._run = run_id

    def accept(self, outcome: Any) -> None:
        """Raise OutcomeError if a journal cannot hold this outcome exactly."""
        exact.check(outcome)

    def write(self, account: Account, error: BaseException | None = None, *, rests: bool = True) -> None:
        """Append all that has happened since the last call: header, steps, events, a pause, an error, the end.

        Raises
        ------
        JournalError
            When the file cannot be written.
        """
        if self._file is None or account.timeline.rewound is not None:  # in its past there is nothing to add
            return
        self._settle(again=True)
        records, after = self._fresh(account, error, rests=rests)
        lost: list[str] = []
        data = b""
        for start in range(0, len(records), CHUNK):
            lines, odd = _lines(records[start : start + CHUNK])
            lines, chain = seal(lines, after.chain)
            data, lost, after = data + lines, lost + odd, after._replace(chain=chain)
        self._owed = data, after._replace(size=after.size + len(data))
        self._settle()
        if lost:
            raise JournalError(f"the journal {self.path} cannot hold {', '.join(lost)}; all else was written")

    def go_on(self, account: Account, *, chain: int, ended: bool) -> None:
        """The run was brought to where the file ends (`ended`: with an end), whose checksum is `chain`."""
        assert self._file is not None
        timeline, over = account.timeline, account.status.ended
        self.attach(account.id)
        self._done = _Progress(
            self._file.size, chain, True, timeline.count, timeline.event_count, timeline.cut_count, None,
            ended=ended and over, revived=ended and not over,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file; nothing is written any more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _fresh(self, account: Account, error: BaseException | None, *, rests: bool) -> tuple[list[Record], "_Progress"]:
        """The records of what has happened since the last time, and where they lead."""
        done, timeline, status = self._done, account.timeline, account.status
        records: list[Record] = []
        if not done.begun:
            header = header_of(account)
            if complaint := complaint_of_header(header):
                raise JournalError(f"the journal {self.path} cannot record run {account.id}: {complaint}")
            records.append(header)
            done = done._replace(begun=True, steps=timeline.first, events=timeline.forgotten.events)
        elif (
            done.revived
            or self._went_on(account, error)
            or min(timeline.cuts_since(done.cuts), default=done.steps + 1) <= done.steps
        ):
            steps = min([*timeline.cuts_since(done.cuts), done.steps])
            records.append(GotoRecord(n=steps))
            if timeline.origin is not None and timeline.origin.amid and steps == timeline.first:
                records += self._events_at(steps)  # of which the run has forgotten some
                events = done.events
            else:
                events = timeline.forgotten.events + len(timeline.events_before(steps))
            done = done._replace(steps=steps, events=events, pending=None, ended=False, paused=False, revived=False)
        steps, fresh = done.steps, timeline.events_since(done.events)
        for event in fresh:  # rare, so the steps between them can be sliced
            records += step_records(timeline, steps, event.number)
            records.append(event_record(event))
            steps = event.number
        many = step_records(timeline, steps, timeline.count)
        records += many
        rests, pending = rests and status in (Status.PAUSED, Status.WAITING), account.sent
        if error is not None:
            records += [pause_record(account)] * (pending != done.pending)
            records.append(error_record(account, error))
        if status.ended:
            if not done.ended:
                records.append(EndRecord(n=timeline.count, status=str(status)))  # type: ignore[arg-type]  # it has
        elif (rests and (many or fresh or not done.paused)) or pending != done.pending:
            records.append(pause_record(account))
        return records, done._replace(
            steps=timeline.count, events=timeline.event_count, cuts=timeline.cut_count, pending=pending,
            ended=status.ended, paused=rests or (done.paused and not many),
        )  # fmt: skip

    def _events_at(self, number: int) -> list[Record]:
        """What the file says took effect before the step of this number, after the one before."""
        written = Journal.open(self._place).timeline()
        return [record for record in written if isinstance(record, EVENTS) and record.n == number]

    def _went_on(self, account: Account, error: BaseException | None) -> bool:
        """Whether the run has done something since its end was recorded, as one does that failed."""
        done, timeline = self._done, account.timeline
        more = timeline.count > done.steps or timeline.event_count > done.events
        return done.ended and (more or error is not None or not account.status.ended)

    def _settle(self, *, again: bool = False) -> None:
        """Write what is owed; if an interrupt keeps it from its end, the next call does it `again`, the rest of it."""
        if self._owed is None or self._file is None:
            return
        data, after = self._owed
        try:
            if data:
                self._file.grow(data, after.size, again=again)
        except OSError as error:
            self.close()
            message = f"the journal {self.path} cannot be written: {error.strerror}"
            if not self._drop:
                raise JournalError(
                    f"{message}; free some space, or let the run go on without (on_full='drop')"
                ) from error
            warnings.warn(f"{message}; the run goes on without it", RuntimeWarning, stacklevel=2)
        self._done = after
        self._owed = None


class _Progress(NamedTuple):
    """How far a journal has come: its length and checksum, and how many of the run's steps, events and cuts it has."""

    size: int = 0
    chain: int = 0
    begun: bool = False
    steps: int = 0
    events: int = 0
    cuts: int = 0
    pending: tuple[tuple[str, Any], ...] | None = ()  # what the last pause said; None: something else by now, perhaps
    ended: bool = False
    paused: bool = False
    revived: bool = False  # the file holds an end that the run goes on from


def event_record(event: Event) -> SignalRecord | RefusedRecord | EditRecord:
    """A signal or an edit as a journal holds it."""
    if event.kind == "signal":
        return SignalRecord(n=event.number, name=event.name, o=event.outcome)
    if event.kind == "refused":
        return RefusedRecord(n=event.number, name=event.name, o=event.outcome, why=_text(event.reason))
    return EditRecord(n=event.number, name=event.name, o=event.outcome)


def pause_record(account: Account) -> PauseRecord:
    """Where a run rests."""
    pending = tuple(name if payload is None else (name, payload) for name, payload in account.sent)
    return PauseRecord(n=account.step_count, p=account.phase_name, pending=pending)


def error_record(account: Account, error: BaseException) -> ErrorRecord:
    """What a run failed of."""
    return ErrorRecord(
        n=account.timeline.count, p=account.phase_name, exception=type(error).__name__[:1000],
        message=_text(message_of(error)), outside=not isinstance(error, Exception),
    )  # fmt: skip


def _text(words: str) -> str:
    """What somebody else said, so that a record can hold it."""
    return words[:5_000].encode(errors="backslashreplace").decode()[:10_000]


def seal(lines: bytes, chain: int) -> tuple[bytes, int]:
    """Lines whose last one carries the checksum of all before it, and the checksum after them."""
    head = lines[:-2]  # without "}\n"
    sealed = b'%b,"c":%d}\n' % (head, crc32(head, chain))
    return sealed, crc32(sealed, chain)


def _lines(records: Sequence[Record]) -> tuple[bytes, list[str]]:
    """The records as lines; of one that no line can hold all but what is at fault, and what that was."""
    with suppress(TypeError, ValueError, RecursionError):
        lines = exact.encoder.encode_lines(records)
        if len(lines) < exact.MAX_OUTCOME:
            return lines, []
    whole, lost = [], []
    for record in records:
        try:
            whole.append(_line(record))
        except (TypeError, ValueError, RecursionError) as error:
            if not isinstance(record, StepRecord | EditRecord):
                raise JournalError(f"a journal cannot hold {exact.shown(record)}: {error}") from error
            kind, name = ("step", record.p) if isinstance(record, StepRecord) else ("edit", record.name)
            lost.append(f"the digest or outcome of {kind} {record.n} ({name}): {exact.shown(str(error))}")
            whole.append(_line(_bare(record)))
    return b"".join(whole), lost


def _line(record: Record) -> bytes:
    line = exact.encoder.encode(record) + b"\n"
    if len(line) > exact.MAX_LINE - 100:  # its checksum comes to it
        raise ValueError(f"it would be {len(line)} bytes long, a line is at most {exact.MAX_LINE}")
    return line


def _bare(record: StepRecord | EditRecord) -> Record:
    """The record without what cannot be encoded; the outcome stays if it can be."""
    if isinstance(record, StepRecord):
        bare = msgspec.structs.replace(record, d=None)
        with suppress(TypeError, ValueError, RecursionError):
            _line(bare)
            return bare
    return msgspec.structs.replace(record, o=None, **({"d": None} if isinstance(record, StepRecord) else {}))
