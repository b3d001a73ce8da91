"""Makes a folder or a file whole or not at all, and leaves nothing else behind, not even after a kill."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

PARTS = re.compile(r"\..*\.(\d{1,9})-([0-9a-f]{32})\.part", re.DOTALL)  # of which process, and which of its folders

_making: set[str] = set()  # the folders that threads of this process are at


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it is renamed to `path` at the end, or taken away if that is not reached.

    Whoever fills it sees its files on the disk.

    Raises
    ------
    OSError
        If it cannot be made, or something that is no empty folder has come to stand at `path` meanwhile.
    """
    sweep(path.parent)
    mark = uuid4().hex
    part = _part(path, mark)
    _making.add(mark)
    try:
        part.mkdir()
        yield part
        _sync(part)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _making.discard(mark)
    _sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; it is renamed to `path` at the end, in place of what stands there, or taken away.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    sweep(path.parent)
    mark = uuid4().hex
    part = _part(path, mark)
    _making.add(mark)
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        _making.discard(mark)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Take a folder away: nobody finds half of it."""
    part = _part(path, uuid4().hex)
    path.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Take away what processes left here when they were killed while they filled it."""
    for entry in folder.iterdir():
        if (part := PARTS.fullmatch(entry.name)) and part[2] not in _making:
            process = int(part[1])
            if process == os.getpid() or not _alive(process):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    with suppress(OSError):
                        entry.unlink()


def sweep_parts(path: Path) -> None:
    """Take away all that was begun of `path` and not ended; the caller knows that nobody is at it."""
    for entry in path.parent.iterdir():
        if PARTS.fullmatch(entry.name) and entry.name.startswith(f".{path.name[:100]}."):
            shutil.rmtree(entry, ignore_errors=True)


def _part(path: Path, mark: str) -> Path:
    return path.with_name(f".{path.name[:100]}.{os.getpid()}-{mark}.part")


def _sync(folder: Path) -> None:
    with suppress(OSError):  # not every system lets a folder be synced
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    with suppress(OSError):  # where there is no /proc, a process counts until its parent has seen its end
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    return True
