"""Reads a journal: streamed, each record checked against its chain of checksums and against what went before."""

import io
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import msgspec

from statemachine.errors import JournalError
from statemachine.record.exact import MAX_LINE, shown
from statemachine.record.records import (
    READABLE,
    SCHEMA,
    AnyRecord,
    BodyRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    Header,
    decoder,
)
from statemachine.record.validate import Validator, complaint_of_header


class _Schema(msgspec.Struct):
    schema: int


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal on disk. Reading streams it: at most one line is in memory at a time.

    Attributes
    ----------
    torn
        How many bytes of a line that was never finished stand at the end; they are not read.
    chained
        Whether checksums are compared; a record that somebody edited by hand can be read without.
    """

    path: Path
    header: Header
    torn: int
    chained: bool = True
    lines: bytes | None = field(default=None, repr=False)  # where the lines are, if not in the file at `path`

    @classmethod
    def of_lines(cls, path: Path, lines: bytes) -> "Journal":
        """A journal whose lines are at hand; `path` says where they came from. Raises JournalError as `open` does."""
        header = _header(path, lines[: lines.find(b"\n") + 1])
        return cls(path, header, len(lines) - (lines.rfind(b"\n") + 1), lines=lines)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, repair: bool = False, chained: bool = True) -> "Journal":
        """Open a journal; with `repair`, also cut a torn last line off the file.

        Raises
        ------
        JournalError
            When there is no such file, it is no journal, or a newer version wrote it.
        """
        path = Path(path)
        with _reading(path) as file:
            line = file.readline(MAX_LINE)
            torn = _torn_bytes(file)
        header = _header(path, line)
        if repair and torn:
            os.truncate(path, path.stat().st_size - torn)
            torn = 0
        return cls(path, header, torn, chained)

    def records(self) -> Iterator[BodyRecord]:
        """Every record after the header, in order, as it stands in the file.

        Raises
        ------
        JournalError
            When a line is damaged or out of order; the message names line and cause.
        """
        for _, record in self.numbered():
            yield record

    def last(self) -> BodyRecord | None:
        """The last record; None if there is only a header. All of them are checked on the way."""
        found = deque(self.records(), maxlen=1)
        return found[0] if found else None

    def numbered(self) -> Iterator[tuple[int, BodyRecord]]:
        """The records, each with the number of its line; the header's is 1."""
        validator, chain = Validator(self.header), _Chain(self)
        with self._file() as file:
            if complaint := chain.follow(1, file.readline(MAX_LINE), self.header):
                raise self.error(1, complaint)
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=2):
                if not line.endswith(b"\n"):
                    if len(line) >= MAX_LINE:
                        raise self.error(number, f"longer than {MAX_LINE} bytes, which no record is")
                    return  # torn: the run was killed while it wrote this
                record = _decode(self.path, number, line)
                if isinstance(record, Header):
                    raise self.error(number, "a second header")
                if complaint := validator.complaint(record) or chain.follow(number, line, record):
                    raise self.error(number, complaint)
                record.c = None  # it has done its duty
                yield number, record

    def timeline(self) -> Iterator[BodyRecord]:
        """The records that count in the end: what the run went back from is left out. Streams as `records` does.

        The whole journal is checked before the first record is given.
        """
        for _, record in self.numbered_timeline():
            yield record

    def numbered_timeline(self) -> Iterator[tuple[int, BodyRecord]]:
        """The timeline, each record with the number of its line."""
        reach = [record.n for record in self.records() if isinstance(record, GotoRecord)]
        for place in range(len(reach) - 2, -1, -1):  # how far what stands before each goto counts in the end
            reach[place] = min(reach[place], reach[place + 1])
        gone = 0
        for number, record in self.numbered():
            if isinstance(record, GotoRecord):
                gone += 1
            elif gone == len(reach) or (record.n < reach[gone] and not isinstance(record, ErrorRecord | EndRecord)):
                yield number, record

    def checksum(self) -> int:
        """The checksum of everything in it, torn bytes left out: what a writer that goes on here begins with."""
        chain = 0
        with self._file() as file:
            for line in iter(lambda: file.readline(MAX_LINE), b""):
                if line.endswith(b"\n"):
                    chain = crc32(line, chain)
        return chain

    def error(self, line: int, complaint: str) -> JournalError:
        """An error that names the file and the line."""
        return JournalError(f"{self.path}, line {line}: {complaint}")

    @contextmanager
    def _file(self) -> Iterator[BinaryIO]:
        if self.lines is not None:
            yield io.BytesIO(self.lines)
        else:
            with _reading(self.path) as file:
                yield file


class _Chain:
    """The running checksum of a journal, compared wherever a line carries it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._value = 0
        self._since = 1  # the first line after the last that carried a checksum
        self._compared = journal.chained and journal.header.schema > 1

    def follow(self, number: int, line: bytes, record: AnyRecord) -> str | None:
        """Take the next line in; what is wrong with it, if anything is."""
        if not self._compared:
            return None
        if record.c is None:
            self._value = crc32(line, self._value)
            return "the end carries no checksum: something was taken away" if isinstance(record, EndRecord) else None
        head, _, tail = line.rpartition(b',"c":')
        expected = crc32(head, self._value)
        self._value = crc32(line, self._value)
        if expected != record.c or tail != b"%d}\n" % record.c:
            lines = f"one of the lines {self._since} to {number}" if self._since < number else "this line"
            return f"the checksum does not fit: {lines} was changed, or lines were added or taken away"
        self._since = number + 1
        return None


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise JournalError(f"{path} is no journal: it is no regular file")
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JournalError(f"the journal {path} cannot be read: {reason}") from error


def _header(path: Path, line: bytes) -> Header:
    if not line.endswith(b"\n"):
        what = "is empty" if not line else "has no whole first line"
        raise JournalError(f"{path} is no journal: it {what}")
    try:
        schema = msgspec.json.decode(line, type=_Schema).schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"{path} is no journal: line 1 is no header ({shown(str(error))})") from error
    if schema not in READABLE:
        raise JournalError(
            f"{path} has schema {schema}, but this version reads schema {READABLE[0]} to {SCHEMA}; "
            f"{'upgrade phasewalk' if schema > SCHEMA else 'record it again'}"
        )
    header = _decode(path, 1, line)
    if not isinstance(header, Header):
        raise JournalError(f"{path} is no journal: line 1 is a {type(header).__name__}, not a header")
    if complaint := complaint_of_header(header):
        raise JournalError(f"{path}, line 1: the header is damaged: {complaint}")
    return header


def _torn_bytes(file: BinaryIO) -> int:
    """How many bytes stand after the last line that was finished; looked for from the end, block by block."""
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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"{path}, line {number}: {shown(str(error))}") from error
