"""Writes files whole or not at all, and leaves nothing else behind, not even after a kill."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

PART = re.compile(r"\..*\.(\d{1,9})-([0-9a-f]{32})\.part", re.DOTALL)  # of which process, and which of its writes

_writing: set[str] = set()  # the writes that threads of this process are at


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, see it on the disk, and rename it: an old file stands until then.

    Raises
    ------
    OSError
        When it cannot be written, or something stands there that is no regular file.
    """
    check_regular(path)
    sweep(path.parent)
    mark = uuid4().hex
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}-{mark}.part")
    _writing.add(mark)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        _writing.discard(mark)
    with suppress(OSError):  # not every system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path) -> None:
    """Take away what processes left here when they were killed while they wrote."""
    for entry in os.scandir(folder):
        if (part := PART.fullmatch(entry.name)) and part[2] not in _writing:
            process = int(part[1])
            if process == os.getpid() or not _alive(process):
                with suppress(OSError):
                    os.unlink(entry.path)


def check_regular(path: Path) -> None:
    """Raise OSError if something stands at `path` that is no regular file: a link, a folder, a pipe or a device."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"))
        kind = next((name for test, name in kinds if test(mode)), "a device or socket")
        raise OSError(None, f"it is {kind}, which is never replaced; name a plain file")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    with suppress(OSError):  # where there is no /proc, a process counts until its parent has seen its end
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    return True
