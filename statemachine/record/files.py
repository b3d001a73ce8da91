"""Writes files whole or not at all, and leaves nothing else behind, not even after a kill."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_writing: set[str] = set()  # temporary files that a thread of this process is writing


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, see it on the disk, and rename it: an old file stands until then.

    Raises
    ------
    OSError
        When it cannot be written, or something stands there that is no regular file.
    """
    check_regular(path)
    _sweep(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.{os.getpid()}-", suffix=".part", delete=False
        ) as file:
            temporary = Path(file.name)
            _writing.add(temporary.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
            _writing.discard(temporary.name)
    with suppress(OSError):  # not every system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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


def _sweep(path: Path) -> None:
    """Take away what earlier processes left of this file when they were killed."""
    prefix = f".{path.name}."
    for entry in os.scandir(path.parent):
        if entry.name.startswith(prefix) and entry.name.endswith(".part") and entry.name not in _writing:
            pid = entry.name.removeprefix(prefix).partition("-")[0]
            if pid.isdecimal() and (int(pid) == os.getpid() or not _alive(int(pid))):
                Path(entry.path).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
