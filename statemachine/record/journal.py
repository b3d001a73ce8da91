"""The journal: a run's record on disk, append-only JSON Lines of typed, versioned records."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from statemachine.definition.phase import Status
from statemachine.errors import JournalError
from statemachine.record.records import (
    SCHEMA,
    AnyRecord,
    BodyRecord,
    EditRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    Header,
    PauseRecord,
    Record,
    SignalRecord,
    StepRecord,
    decoder,
    encoder,
    header_of,
)

if TYPE_CHECKING:
    from statemachine.execution.run import Run

MAX_LINE = 64 * 2**20  # bytes; a longer line is no record of ours
CHUNK = 4096  # steps encoded at once


class _Schema(msgspec.Struct):
    schema: int


class JournalWriter:
    """Writes one run's journal, in chunks, whenever the run says so.

    Every chunk is handed to the system by one write, so that a process that is killed loses at most what it had not
    yet written, and at most the last line is torn.

    Parameters
    ----------
    path
        A file that does not exist yet.
    sync
        Wait until each chunk is on the disk itself, so that a power failure loses no more than a kill does.
    on_full
        "fail": a journal that cannot be written fails the run. "drop": the run goes on without, with a warning.

    Raises
    ------
    JournalError
        When the file exists or cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync: bool = False,
        on_full: Literal["fail", "drop"] = "fail",
    ) -> None:
        self.path = Path(path)
        self._sync = sync
        self._drop = on_full == "drop"
        self._begun = self._paused = self._ended = False
        self._steps = self._events = 0  # how many of the run's have been written
        try:
            self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            raise JournalError(
                f"{path} exists already: a journal never overwrites; choose another name or remove it"
            ) from None
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be made: {error.strerror}") from error

    def write(self, run: "Run[Any]", error: BaseException | None = None) -> None:
        """Append all that has happened since the last call: header, steps, events, a pause, an error, the end."""
        if self._file is None or run.step_count < self._steps:  # while it rests in its past there is nothing to add
            return
        records: list[Record] = []
        if not self._begun:
            records.append(header_of(run))
            self._begun = True
        events = run.events
        fresh, self._events = events[self._events :], len(events)
        for event in fresh:  # rare, so the steps between them can be sliced
            records += self._steps_until(run, event.number)
            kind = {"signal": SignalRecord(n=event.number, name=event.name)}
            records.append(kind.get(event.kind) or EditRecord(n=event.number, name=event.name, o=event.outcome))
        many = self._steps_until(run, run.step_count)
        status = run.status
        tail: list[Record] = []
        if error is not None:
            message = str(error)[:10_000]
            tail.append(
                ErrorRecord(n=run.step_count, p=run.phase.name, exception=type(error).__name__, message=message)
            )
        if status.ended and not self._ended:
            tail.append(EndRecord(n=run.step_count, status=str(status)))
            self._ended = True
        elif status is Status.PAUSED and (many or fresh or not self._paused):
            tail.append(PauseRecord(n=run.step_count))
        self._paused = status is Status.PAUSED
        records += many
        records += tail
        for start in range(0, len(records), CHUNK):
            self._append(records[start : start + CHUNK])

    def cut(self, number: int, *, events: int) -> None:
        """The run goes on in its own past: from before step `number`, where it has seen so many events."""
        if self._begun:
            self._append([GotoRecord(n=number)])
            self._steps, self._events, self._ended = number, events, False

    def close(self) -> None:
        """Close the file; nothing is written any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _steps_until(self, run: "Run[Any]", number: int) -> Sequence[Record]:
        first, self._steps = self._steps, max(number, self._steps)
        return run.step_records(first, number)

    def _append(self, records: Sequence[Record]) -> None:
        if self._file is None or not records:
            return
        try:
            data = memoryview(encoder.encode_lines(records))
        except (TypeError, ValueError) as error:
            raise JournalError(f"the journal {self.path} cannot hold {_culprit(records)}: {error}") from error
        try:
            while data:
                data = data[os.write(self._file, data) :]
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


def _culprit(records: Sequence[Record]) -> str:
    for record in records:
        try:
            encoder.encode(record)
        except (TypeError, ValueError):
            return f"the outcome of step {record.n} ({record.p})" if isinstance(record, StepRecord) else repr(record)
    return "a record"


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal on disk. Reading streams it: at most one line is in memory at a time.

    Attributes
    ----------
    torn
        How many bytes of a line that was never finished stand at the end; they are not read.
    """

    path: Path
    header: Header
    torn: int
    lines: bytes | None = None  # where the lines are, if not in the file at `path`

    @classmethod
    def of_lines(cls, path: Path, lines: bytes) -> "Journal":
        """A journal whose lines are at hand; `path` says where they came from. Raises JournalError as `open` does."""
        header = _header(path, lines[: lines.find(b"\n") + 1])
        return cls(path, header, 0, lines)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, repair: bool = False) -> "Journal":
        """Open a journal; with `repair`, also cut a torn last line off the file.

        Raises
        ------
        JournalError
            When there is no such file, it is no journal, or a newer version wrote it.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                line = file.readline(MAX_LINE)
            torn = _torn_bytes(path)
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error
        header = _header(path, line)
        if repair and torn:
            os.truncate(path, path.stat().st_size - torn)
        return cls(path, header, torn)

    def records(self) -> Iterator[BodyRecord]:
        """Every record after the header, in order, as it stands in the file.

        Raises
        ------
        JournalError
            When a line is damaged or out of order; the message names line and cause.
        """
        machine = self.header.machine
        phases, transitions = set(machine.phases), range(len(machine.transitions))
        coming = 0
        with io.BytesIO(self.lines) if self.lines is not None else self.path.open("rb") as file:
            file.readline(MAX_LINE)
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=2):
                if not line.endswith(b"\n"):
                    if len(line) >= MAX_LINE:
                        raise JournalError(
                            f"{self.path}, line {number}: longer than {MAX_LINE} bytes, which no record is"
                        )
                    return  # torn: the run was killed while it wrote this
                record = _decode(self.path, number, line)
                if isinstance(record, Header):
                    raise JournalError(f"{self.path}, line {number}: a second header")
                complaint = None
                if isinstance(record, GotoRecord):
                    if not 0 <= record.n <= coming:
                        complaint = f"goes back to step {record.n}, but there are {coming}"
                    coming = record.n
                elif record.n != coming:
                    complaint = (
                        f"belongs to step {record.n}, but step {coming} was expected: lines are missing or doubled"
                    )
                elif isinstance(record, StepRecord):
                    coming += 1
                    if record.p not in phases:
                        complaint = f"names phase {record.p!r}, which the header does not"
                    elif record.e not in transitions:
                        complaint = f"names transition {record.e}, but the header has {len(transitions)}"
                if complaint:
                    raise JournalError(f"{self.path}, line {number}: {complaint}")
                yield record

    def timeline(self) -> Iterator[BodyRecord]:
        """The records that count in the end: what the run went back from is left out. Streams as `records` does."""
        reach = [record.n for record in self.records() if isinstance(record, GotoRecord)]
        for place in range(len(reach) - 2, -1, -1):  # how far what stands before each goto counts in the end
            reach[place] = min(reach[place], reach[place + 1])
        gone = 0
        for record in self.records():
            if isinstance(record, GotoRecord):
                gone += 1
            elif gone == len(reach) or (record.n < reach[gone] and not isinstance(record, ErrorRecord | EndRecord)):
                yield record


def _header(path: Path, line: bytes) -> Header:
    if not line.endswith(b"\n"):
        what = "is empty" if not line else "has no whole first line"
        raise JournalError(f"{path} is no journal: it {what}")
    try:
        schema = msgspec.json.decode(line, type=_Schema).schema
    except msgspec.MsgspecError as error:
        raise JournalError(f"{path} is no journal: line 1 is no header ({error})") from error
    if schema != SCHEMA:
        raise JournalError(
            f"{path} has schema {schema}, but this version reads schema {SCHEMA}; "
            f"{'upgrade phasewalk' if schema > SCHEMA else 'record it again'}"
        )
    header = _decode(path, 1, line)
    if not isinstance(header, Header):
        raise JournalError(f"{path} is no journal: line 1 is a {type(header).__name__}, not a header")
    return header


def _torn_bytes(path: Path) -> int:
    """How many bytes stand after the last line that was finished; looked for from the end, block by block."""
    with path.open("rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return size - (start + place + 1)
            end = start
    return size


def _decode(path: Path, number: int, line: bytes) -> AnyRecord:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalError(f"{path}, line {number}: {error}") from error
