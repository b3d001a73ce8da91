"""The buffers that an engine and its callers share: allocated once, never moved."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class BufferInfo(NamedTuple):
    """What a debugger shows of one buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    address: int


@dataclass(slots=True, frozen=True)
class Buffers:
    """Tokens in, logits and tokens out, and how each row is sampled.

    The caller fills `input_ids`, `input_lengths` and the sampling parameters; the engine fills `logits` and
    `next_token`. The sampling parameters are float64, so that their integer thresholds are the same everywhere.
    """

    input_ids: npt.NDArray[np.int32]  # [rows, capacity] int32
    input_lengths: npt.NDArray[np.int32]  # [rows] int32
    next_token: npt.NDArray[np.int32]  # [rows] int32
    logits: npt.NDArray[np.float32]  # [rows, vocab] float32
    temperature: npt.NDArray[np.float64]  # [rows] float64, 0 = greedy
    top_k: npt.NDArray[np.int32]  # [rows] int32, 0 = off
    top_p: npt.NDArray[np.float64]  # [rows] float64, 1 = off
    min_p: npt.NDArray[np.float64]  # [rows] float64, 0 = off
    seed: npt.NDArray[np.uint64]  # [rows] uint64

    @classmethod
    def allocate(cls, *, rows: int, capacity: int, vocab: int) -> "Buffers":
        """Reserve buffers for `rows` rows; every row starts greedy."""
        return cls(
            input_ids=np.zeros((rows, capacity), np.int32),
            input_lengths=np.zeros(rows, np.int32),
            next_token=np.zeros(rows, np.int32),
            logits=np.zeros((rows, vocab), np.float32),
            temperature=np.zeros(rows, np.float64),
            top_k=np.zeros(rows, np.int32),
            top_p=np.ones(rows, np.float64),
            min_p=np.zeros(rows, np.float64),
            seed=np.zeros(rows, np.uint64),
        )

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.logits)

    def set_sampling(self, row: int, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Say how this row is sampled from now on; see `gpu.sampling` for what the parameters mean.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or the row does not exist.
        """
        if not 0 <= row < self.rows:
            raise ValueError(f"there is no row {row}: the buffers have rows 0 to {self.rows - 1}")
        check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        self.temperature[row] = temperature
        self.top_k[row] = min(top_k, np.iinfo(np.int32).max)
        self.top_p[row] = top_p
        self.min_p[row] = min_p
        self.seed[row] = seed

    def addresses(self) -> dict[str, int]:
        """Give the address of each buffer's first byte, by name; they never change."""
        return {info.name: info.address for info in self}

    def __iter__(self) -> Iterator[BufferInfo]:
        for item in fields(self):
            array: npt.NDArray[Any] = getattr(self, item.name)
            yield BufferInfo(item.name, array.shape, array.dtype.name, array.ctypes.data)


def check_sampling(*, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
    """Raise a ValueError that names the first sampling parameter out of its range."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}, expected a finite number of at least 0 (0 is greedy)")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, expected at least 0 (0 turns it off)")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a number from 0 to 1 (1 turns it off)")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}, expected a number from 0 to 1 (0 turns it off)")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**64 - 1")
