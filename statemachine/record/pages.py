"""Pages: large arrays beside the snapshots that share them, each under the checksum of what is in it, never changed."""

import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statemachine.errors import SnapshotError
from statemachine.record import exact
from statemachine.record.files import sweep, write_whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FOLDER = "snapshot-pages"


class Pages:
    """The pages of the snapshots that stand beside this one; each is read once."""

    def __init__(self, snapshot: Path) -> None:
        self._folder = snapshot.parent / FOLDER
        self._read: dict[str, npt.NDArray[Any]] = {}
        self._swept = False

    def keep(self, array: "npt.NDArray[Any]") -> str:
        """Put an array among the pages, unless it is there, whole; gives its checksum. Raises OSError."""
        from safetensors.numpy import save as to_bytes

        self._folder.mkdir(exist_ok=True)
        if not self._swept:
            sweep(self._folder)
            self._swept = True
        checksum = checksum_of(array)
        try:
            _read(self._page(checksum), checksum)
        except SnapshotError:
            write_whole(self._page(checksum), to_bytes({"page": array}))
        return checksum

    def read(self, checksum: str) -> "npt.NDArray[Any]":
        """The array of this checksum; raises SnapshotError if it is missing or damaged."""
        if checksum not in self._read:
            self._read[checksum] = _read(self._page(checksum), checksum)
        return self._read[checksum]

    def _page(self, checksum: str) -> Path:
        return self._folder / f"{checksum}.safetensors"


def checksum_of(array: "npt.NDArray[np.generic]") -> str:
    """A checksum of an array's type, shape and contents."""
    digest = hashlib.sha256(f"{array.dtype.str}{list(array.shape)}".encode())
    digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return digest.hexdigest()


def check_readable(path: Path) -> None:
    """Raise SnapshotError unless `path` is a regular file: a pipe would be waited for."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise SnapshotError(f"{path} is no snapshot: it is no regular file")


def _read(page: Path, checksum: str) -> "npt.NDArray[Any]":
    from safetensors import SafetensorError, safe_open

    check_readable(page)
    try:
        with safe_open(page, framework="numpy") as tensors:
            array: npt.NDArray[Any] = tensors.get_tensor("page")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(f"{page} cannot be read: {exact.shown(str(error))}") from error
    if checksum_of(array) != checksum:
        raise SnapshotError(f"{page} is damaged: its checksum is wrong")
    return array
