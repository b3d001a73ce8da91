"""Writes a journal: a run's record on disk, append-only JSON Lines in a chain of checksums."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import msgspec

from statemachine.definition.phase import Status
from statemachine.errors import JournalError
from statemachine.execution.recorder import Account
from statemachine.execution.timeline import Event
from statemachine.record import exact
from statemachine.record.header import header_of, step_records
from statemachine.record.records import (
    EditRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    PauseRecord,
    Record,
    SignalRecord,
    StepRecord,
)

CHUNK = 4096  # steps encoded at once


class JournalWriter:
    """Writes one run's journal, whenever the run tells it to.

    What happened since the last time is handed to the system by one write, whose last line carries the checksum of
    everything before it: a process that is killed loses at most what it had not yet written, and what is damaged later
    is found. A run that is driven tells at least every 50 ms, and whenever it rests; a loop over a run rests at each
    step.

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
        self.every_step = every == "step"
        self._sync = sync
        self._drop = on_full == "drop"
        self._run: str | None = None
        self._begun = self._paused = self._ended = False
        self._revived = False  # the file holds an end that the run goes on from
        self._steps = self._events = self._cuts = 0  # how many of the run's have been written
        self._chain = 0  # the checksum of everything in the file
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if new else 0)
        try:
            self._file: int | None = os.open(self.path, flags, 0o644)
        except FileExistsError:
            raise JournalError(
                f"{self.path} exists already: a journal never overwrites; choose another name or remove it"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise JournalError(f"the journal {self.path} cannot be made: {reason}") from error

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
        timeline = account.timeline
        if self._file is None or timeline.rewound is not None:  # while it rests in its past there is nothing to add
            return
        records: list[Record] = []
        if not self._begun:
            records.append(header_of(account))
            self._steps = timeline.first
        cuts = timeline.cuts[self._cuts :]
        if self._begun and ((cuts and min(cuts) <= self._steps) or self._revived):
            self._steps, self._revived = min([*cuts, self._steps]), False
            self._events = len(timeline.events_before(self._steps))
            records.append(GotoRecord(n=self._steps))
            self._ended = self._paused = False
        fresh, steps = timeline.events[self._events :], self._steps
        for event in fresh:  # rare, so the steps between them can be sliced
            records += step_records(timeline, steps, event.number)
            records.append(event_record(event))
            steps = event.number
        many = step_records(timeline, steps, timeline.count)
        records += many
        status = account.status
        if error is not None:
            records.append(error_record(account, error))
        if status.ended and not self._ended:
            records.append(EndRecord(n=timeline.count, status=str(status)))  # type: ignore[arg-type]  # it has ended
        elif rests and status is Status.PAUSED and (many or fresh or not self._paused):
            records.append(pause_record(account))
        for start in range(0, len(records), CHUNK):
            self._append(records[start : start + CHUNK])
        self._begun = True
        self._steps, self._events, self._cuts = timeline.count, len(timeline.events), len(timeline.cuts)
        self._ended = status.ended
        self._paused = (rests and status is Status.PAUSED) or (self._paused and not many)

    def go_on(self, account: Account, *, chain: int, ended: bool) -> None:
        """The run was brought to where the file ends (`ended`: with an end), whose checksum is `chain`."""
        timeline = account.timeline
        self.attach(account.id)
        self._chain, self._begun, self._ended = chain, True, account.status.ended
        self._revived = ended and not account.status.ended
        self._steps, self._events, self._cuts = timeline.count, len(timeline.events), len(timeline.cuts)

    def close(self) -> None:
        """Close the file; nothing is written any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, records: Sequence[Record]) -> None:
        if self._file is None or not records:
            return
        data, lost = _lines(records)
        data, chain = seal(data, self._chain)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if self._sync:
                os.fsync(self._file)
        except OSError as error:
            self.close()
            message = f"the journal {self.path} cannot be written: {error.strerror}"
            if not self._drop:
                raise JournalError(
                    f"{message}; free some space, or let the run go on without (on_full='drop')"
                ) from error
            warnings.warn(f"{message}; the run goes on without it", RuntimeWarning, stacklevel=2)
        self._chain = chain
        if lost:
            raise JournalError(f"the journal {self.path} cannot hold {', '.join(lost)}; all else was written")


def event_record(event: Event) -> SignalRecord | EditRecord:
    """A signal or an edit as a journal holds it."""
    if event.kind == "signal":
        return SignalRecord(n=event.number, name=event.name)
    return EditRecord(n=event.number, name=event.name, o=event.outcome)


def pause_record(account: Account) -> PauseRecord:
    """Where a run rests."""
    return PauseRecord(n=account.step_count, p=account.phase_name, pending=account.pending)


def error_record(account: Account, error: BaseException) -> ErrorRecord:
    """What a run failed of."""
    return ErrorRecord(
        n=account.timeline.count, p=account.phase_name, exception=type(error).__name__[:1000],
        message=str(error)[:5_000].encode(errors="backslashreplace").decode()[:10_000],
        outside=not isinstance(error, Exception),
    )  # fmt: skip


def seal(lines: bytes, chain: int) -> tuple[bytes, int]:
    """Lines whose last one carries the checksum of all before it, and the checksum after them."""
    head = lines[:-2]  # without "}\n"
    sealed = b'%b,"c":%d}\n' % (head, crc32(head, chain))
    return sealed, crc32(sealed, chain)


def _lines(records: Sequence[Record]) -> tuple[bytes, list[str]]:
    """The records as lines; of one that cannot be encoded all but what is at fault, and what that was."""
    try:
        return exact.encoder.encode_lines(records), []
    except (TypeError, ValueError, RecursionError):
        pass
    lines, lost = [], []
    for record in records:
        try:
            lines.append(exact.encoder.encode(record))
        except (TypeError, ValueError, RecursionError) as error:
            if not isinstance(record, StepRecord | EditRecord):
                raise JournalError(f"a journal cannot hold {exact.shown(record)}: {error}") from error
            kind, name = ("step", record.p) if isinstance(record, StepRecord) else ("edit", record.name)
            lost.append(f"the digest or outcome of {kind} {record.n} ({name}): {error}")
            bare = {"o": None, "d": None} if isinstance(record, StepRecord) else {"o": None}
            lines.append(exact.encoder.encode(msgspec.structs.replace(record, **bare)))
    return b"\n".join(lines) + b"\n", lost
