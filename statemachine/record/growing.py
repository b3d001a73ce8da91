"""A file that only grows, by one writer, whom no interrupt makes write twice."""

import os
import weakref
from pathlib import Path

from statemachine.errors import JournalError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class GrowingFile:
    """Append to a file that nobody else writes to; it is closed when this is forgotten.

    Parameters
    ----------
    path
        A file that does not exist yet.
    new
        False: one that does.
    sync
        Wait until what was appended is on the disk itself.

    Raises
    ------
    JournalError
        When the file exists (or does not), cannot be made, or is being written to by somebody else.
    """

    def __init__(self, path: Path, *, new: bool, sync: bool) -> None:
        self._path, self._sync = path, sync
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if new else 0)
        try:
            self._file = os.open(path, flags, 0o644)
        except FileExistsError:
            raise JournalError(
                f"{path} exists already: a journal never overwrites; choose another name or remove it"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise JournalError(f"the journal {path} cannot be {'made' if new else 'written'}: {reason}") from error
        self.close = weakref.finalize(self, os.close, self._file)
        self._lock()

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return os.fstat(self._file).st_size

    def grow(self, data: bytes, size: int, *, again: bool = False) -> None:
        """Append `data`, with which the file is `size` bytes long; `again`: what is still missing of it.

        Raises
        ------
        OSError
            When the disk is full, say.
        JournalError
            When somebody else has changed the file.
        """
        missing = size - self.size
        if missing != len(data) and not (again and 0 <= missing < len(data)):
            raise JournalError(f"the journal {self._path} was changed by somebody else while its run was recorded")
        rest = memoryview(data)[len(data) - missing :]
        while rest:
            rest = rest[os.write(self._file, rest) :]
        if self._sync:
            os.fsync(self._file)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise JournalError(
                f"the journal {self._path} is still being written, by another run or process: end it first"
            ) from None
        except OSError:  # a file system that knows no locks
            return
