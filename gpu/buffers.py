"""The memory of an engine whose device is the host: allocated once, never moved."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig


class BufferInfo(NamedTuple):
    """What there is to know of one buffer, wherever it lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    address: int  # of its first byte; never changes


@dataclass(slots=True, frozen=True)
class Buffers:
    """Tokens in, logits and tokens out, how each row is sampled, and the KV cache. Those of one dimension are small.

    The sampling parameters are float64, so that their integer thresholds are the same everywhere.
    """

    input_ids: npt.NDArray[np.int32]  # [rows, capacity] int32
    input_lengths: npt.NDArray[np.int32]  # [rows] int32
    next_token: npt.NDArray[np.int32]  # [rows] int32
    logits: npt.NDArray[np.float32]  # [rows, vocab] float32
    kept_logits: npt.NDArray[np.float32]  # [rows, vocab] float32
    temperature: npt.NDArray[np.float64]  # [rows] float64, 0 = greedy
    top_k: npt.NDArray[np.int32]  # [rows] int32, 0 = off
    top_p: npt.NDArray[np.float64]  # [rows] float64, 1 = off
    min_p: npt.NDArray[np.float64]  # [rows] float64, 0 = off
    seed: npt.NDArray[np.uint64]  # [rows] uint64
    kv_cache: npt.NDArray[np.float32]  # [layers, 2 (keys, values), rows, kv_heads, capacity, head_dim] float32
    history: npt.NDArray[np.int32]  # [rows, capacity] int32, the tokens that penalties look at

    @classmethod
    def allocate(cls, model: ModelConfig, *, rows: int, capacity: int) -> "Buffers":
        """Reserve buffers for `rows` rows; every row starts greedy. The system commits memory as it is written."""
        return cls(
            input_ids=np.zeros((rows, capacity), np.int32),
            input_lengths=np.zeros(rows, np.int32),
            next_token=np.zeros(rows, np.int32),
            logits=np.zeros((rows, model.vocab), np.float32),
            kept_logits=np.zeros((rows, model.vocab), np.float32),
            temperature=np.zeros(rows, np.float64),
            top_k=np.zeros(rows, np.int32),
            top_p=np.ones(rows, np.float64),
            min_p=np.zeros(rows, np.float64),
            seed=np.zeros(rows, np.uint64),
            kv_cache=np.zeros((model.layers, 2, rows, model.kv_heads, capacity, model.head_dim), np.float32),
            history=np.zeros((rows, capacity), np.int32),
        )

    def values(self, row: int) -> dict[str, int | float]:
        """Give what the small buffers hold for this row, by name."""
        return {name: array[row].item() for name, array in self._arrays() if array.ndim == 1}

    def __iter__(self) -> Iterator[BufferInfo]:
        for name, array in self._arrays():
            yield BufferInfo(name, array.shape, array.dtype.name, array.ctypes.data)

    def _arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for item in fields(self):
            yield item.name, getattr(self, item.name)
