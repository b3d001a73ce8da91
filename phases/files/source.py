"""Reads a file of requests, line by line, as often as asked: whatever stands there, each line comes to something."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from phases.errors import RequestError
from phases.files.asked import Asked, Form
from phases.files.forms import Found, requests_of
from phases.printable import one_line
from phases.request import RowRequest

LONGEST = 16 * 2**20  # bytes of a line; a whole file in the reference's form may have as many


def read(path: Path, salt: str) -> Iterator[Asked]:
    """The requests of a file.

    Parameters
    ----------
    path
        JSON Lines, or one JSON object of the reference's form over several lines.
    salt
        What else an answer depends on; it goes into the mark of each request.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    ids: dict[str | int, int] = {}
    with path.open("rb") as file:
        for line, text in _whole(file) or _lines(file):
            found, several = _found(text)
            for place, (given, form, row) in enumerate(found):
                own = f"{line}.{place}" if several else line
                mark = hashlib.blake2s(f"{salt}\n{line}.{place}\n".encode() + (text or b""), digest_size=12)
                if given is not None and given in ids and isinstance(row, RowRequest):
                    row = RequestError(f"its id {given!r:.200} was that of line {ids[given]} already")
                name = own if given is None else given
                ids.setdefault(name, line)
                made = row if isinstance(row, RowRequest) else None
                yield Asked(line, name, mark.hexdigest(), form, made, "" if made else one_line(row, 600))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines that hold something; None for one that is too long, of which no more is kept."""
    file.seek(0)
    number = 0
    while text := file.readline(LONGEST + 1):
        number += 1
        if len(text) > LONGEST:
            while text and not text.endswith(b"\n"):
                text = file.readline(LONGEST)
            yield number, None
        elif text.strip():
            yield number, text.strip()


def _whole(file: BinaryIO) -> list[tuple[int, bytes | None]]:
    """The file as one request, if it is one JSON object of the reference's form that is no line of its own."""
    if file.readline(LONGEST).strip() not in (b"{", b""):
        return []
    file.seek(0)
    text = file.read(LONGEST + 1)
    if len(text) > LONGEST:
        return []
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [(1, text.strip())] if isinstance(value, dict) and "requests" in value else []


def _found(text: bytes | None) -> tuple[list[Found], bool]:
    """The requests of a line, and whether it may hold several."""
    if text is None:
        return _nothing(f"it is longer than {LONGEST} bytes, the most that a line may have")
    try:
        value: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _nothing(f"it is no JSON: {error}")
    return list(requests_of(value)), isinstance(value, dict) and "requests" in value


def _nothing(problem: str) -> tuple[list[Found], bool]:
    return [(None, Form.OURS, RequestError(problem))], False
