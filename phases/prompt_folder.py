"""The prompt cache's blocks in a folder: each a file, whole or not there, believed only if all of it is as expected."""

import json
import os
import re
import stat
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from phases.errors import PromptCacheWarning
from phases.printable import one_line
from statemachine.record.files import write_whole

Block = npt.NDArray[np.float32]

FORMAT = "phasewalk prompt cache 1"
LONGEST_HEADER = 4096  # bytes
_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


class PromptFolder:
    """A folder of blocks that any number of processes read and write at the same time.

    A file that is damaged, foreign or no file at all is a block that is not there, of which a warning tells once. What
    goes wrong with the folder later, a full disk say, is told once, too, and stops nothing.

    Parameters
    ----------
    path
        Made if it is not there, for this user alone.
    limit
        Bytes that all blocks in it may take, of whatever model; those that were used longest ago go first.
    bound_to
        All that blocks depend on besides their tokens: one of anything else is foreign.

    Raises
    ------
    OSError
        When there is no such folder, and it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, limit: int, bound_to: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.bound_to = sha256(json.dumps(bound_to, sort_keys=True).encode()).hexdigest()
        self._limit = limit
        self._told = False
        self._damaged: set[str] = set()  # written again, once they have been computed
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def holds(self, name: str) -> bool:
        """Whether a file of that name is there, which need not be whole."""
        return name not in self._damaged and os.path.lexists(self._file(name))

    def read(self, name: str, shape: tuple[int, ...]) -> Block | None:
        """Give a block of this shape, if it is there and nothing is wrong with it."""
        try:
            data = _read(self._file(name), most=4 * int(np.prod(shape)) + LONGEST_HEADER + 8)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(name, error.strerror or str(error))
            return None
        block, wrong = self._believed(data, name, shape)
        if block is None:
            self._refuse(name, wrong)
        return block

    def write(self, names: Sequence[str], blocks: Mapping[str, Block]) -> None:
        """Keep blocks of a prompt, as far as they are not there yet, and then see to the limit."""
        written = False
        try:
            for name in names:
                if name in blocks and not self.holds(name):
                    data = blocks[name].astype("<f4", copy=False)
                    told = self._told_of(name, data.tobytes())
                    write_whole(self._file(name), safetensors.numpy.save({"kv": data}, told))
                    self._damaged.discard(name)
                    written = True
            self.touch(names)
            if written:
                self._prune()
        except OSError as error:
            self._warn(f"the prompt cache {one_line(self.path)} cannot be written: {one_line(error)}")

    def touch(self, names: Sequence[str]) -> None:
        """Note that a prompt of these blocks was used: its beginning last, so that its end goes first."""
        for name in reversed(names):
            now = time.time_ns()
            with suppress(OSError):
                os.utime(self._file(name), ns=(now, now), follow_symlinks=False)

    def _believed(self, data: bytes, name: str, shape: tuple[int, ...]) -> tuple[Block | None, str]:
        """The block that a file is, or what is wrong with it: every byte of it is accounted for."""
        size, length = 4 * int(np.prod(shape)), int.from_bytes(data[:8], "little")
        if length > LONGEST_HEADER or len(data) != 8 + length + size:
            return None, f"it is not {size} bytes long behind a header"
        try:
            header = json.loads(data[8 : 8 + length])
        except (ValueError, RecursionError):
            return None, "its header is not JSON"
        values = data[8 + length :]
        tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
        if header != {"__metadata__": self._told_of(name, values), "kv": tensor}:
            return None, "its header or its checksum is another"
        block: Block = np.frombuffer(values, "<f4").reshape(shape)
        return block, ""

    def _told_of(self, name: str, values: bytes) -> dict[str, str]:
        digest = sha256(name.encode())
        digest.update(values)
        return {"format": FORMAT, "bound_to": self.bound_to, "sha256": digest.hexdigest()}

    def _prune(self) -> None:
        """Take files away until they keep to the limit, those that were used longest ago first."""
        files = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _FILE.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # another process was faster
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    def _refuse(self, name: str, reason: str) -> None:
        self._damaged.add(name)
        self._warn(
            f"an entry of the prompt cache {one_line(self.path)} is ignored: {one_line(reason)} ({name[:12]}...); "
            f"what it was to save is computed"
        )

    def _warn(self, words: str) -> None:
        if not self._told:
            self._told = True
            warnings.warn(words, PromptCacheWarning, stacklevel=2)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


def _read(path: Path, *, most: int) -> bytes:
    """Read a regular file, and one byte more than `most` at most; links are not followed, and pipes not waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(None, "it is no regular file")
        return file.read(most + 1)
