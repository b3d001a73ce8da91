"""Reads one safetensors file: its header is checked in full before any byte of it is believed."""

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from gpu.errors import CheckpointError
from gpu.printable import printable

_MAX_HEADER = 100_000_000  # bytes; the format's own limit
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(slots=True, frozen=True)
class TensorEntry:
    """Where one tensor lies in its file."""

    path: Path
    dtype: str  # as in the header, e.g. "BF16"
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    size: int  # bytes

    def read_into(self, target: npt.NDArray[np.float32]) -> None:
        """Copy the values into `target`, widened to float32.

        Parameters
        ----------
        target : ndarray, contiguous, float32
            As many elements as the tensor has.

        Raises
        ------
        CheckpointError
            If the dtype is none of F32, F16, BF16.
        """
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            flat = target.reshape(-1)
            match self.dtype:
                case "F32":
                    flat[:] = np.frombuffer(memory, "<f4", flat.size, self.start)
                case "F16":
                    flat[:] = np.frombuffer(memory, "<f2", flat.size, self.start)
                case "BF16":  # the upper half of a float32
                    bits = flat.view(np.uint32)
                    bits[:] = np.frombuffer(memory, "<u2", flat.size, self.start)
                    bits <<= 16
                case _:
                    raise CheckpointError(f"{self.path.name}: the dtype {self.dtype} is not one of {[*ITEM_BYTES]}")

    def read_bytes(self, start: int, target: npt.NDArray[np.uint8]) -> None:
        """Copy the tensor's bytes from `start` on as they lie in the file, as many as `target` has.

        Raises
        ------
        CheckpointError
            If the file cannot be read, or has become shorter.
        """
        left = target.data
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + start)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise CheckpointError(
                            f"{printable(self.path.name)} was cut short while it was read: fetch the file again"
                        )
                    left = left[count:]
        except OSError as error:
            raise CheckpointError(f"{printable(self.path.name)} cannot be read: {printable(error)}") from None


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read which tensors a safetensors file holds.

    Tensors of dtypes that no engine reads are listed with the size that the header gives them.

    Raises
    ------
    CheckpointError
        If the file is cut short, the header is no valid one, or tensors overlap or lie outside the file.
    """
    shown = printable(path.name)
    if not path.is_file():
        raise CheckpointError(f"{shown} is no regular file: expected safetensors")
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_size = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_size > min(length - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{shown} is no safetensors file or is cut short: its header claims {header_size} bytes, "
                    f"the file has {length}"
                )
            text = file.read(header_size)
    except OSError as error:
        raise CheckpointError(f"{shown} cannot be read: {printable(error)}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{shown}: the header is not JSON: {printable(error) or 'too large'}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{shown}: the header is a {type(header).__name__}, expected a JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + header_size) for name, value in header.items()}
    end = 8 + header_size
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start < end or entry.start + entry.size > length:
            raise CheckpointError(
                f"{shown}: the tensor {name!r:.200} lies at bytes {entry.start} to {entry.start + entry.size}, "
                f"over another tensor or outside the file of {length} bytes: fetch the file again"
            )
        end = entry.start + entry.size
    return entries


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    if isinstance(value, dict):
        dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(dtype, str) and _naturals(shape) and _naturals(offsets) and len(offsets) == 2:
            start, stop = offsets
            if dtype not in ITEM_BYTES or math.prod(shape) * ITEM_BYTES[dtype] == stop - start:
                return TensorEntry(path, dtype, tuple(shape), data_start + start, max(0, stop - start))
    raise CheckpointError(f"{printable(path.name)}: the header entry of {name!r:.200} makes no sense: {value!r:.200}")


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
