"""The linear KV cache: one append-only stretch of keys and values a row, and the count of what is in it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.errors import CapacityError, NoFreeRows


@dataclass(slots=True, frozen=True)
class LinearKVCache:
    """Keys and values of every row, at addresses that never change.

    Row r holds the tokens at absolute positions 0 to `lengths[r]` - 1; what lies behind is never read. Memory is
    committed by the system as positions are first written, so a generous capacity costs nothing until it is used.

    Invariant: `0 <= lengths[row] <= capacity`, and `lengths[row] == 0` for every free row.
    """

    data: npt.NDArray[np.float32]  # [layers, 2 (keys, values), rows, kv_heads, capacity, head_dim] float32
    lengths: npt.NDArray[np.int32]  # [rows] int32, written by commit, truncate and release only
    _free: list[int] = field(repr=False)
    # Reentrant, as a forgotten run may be collected, and give its rows back, while this thread asks for some.
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @classmethod
    def allocate(cls, model: ModelConfig, rows: int, capacity: int) -> "LinearKVCache":
        """Reserve a cache of `rows` rows of `capacity` positions for this model."""
        shape = (model.layers, 2, rows, model.kv_heads, capacity, model.head_dim)
        # The lowest row is handed out first: it is the last of the list.
        return cls(np.zeros(shape, np.float32), np.zeros(rows, np.int32), _free=list(range(rows))[::-1])

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """How many positions a row has."""
        return int(self.data.shape[4])

    @property
    def free(self) -> int:
        """How many rows are free now."""
        return len(self._free)

    @property
    def bytes_per_position(self) -> int:
        """Bytes of keys and values that one position of one row holds, all layers together."""
        layers, sides, _, kv_heads, _, head_dim = self.data.shape
        return int(layers * sides * kv_heads * head_dim * self.data.itemsize)

    def acquire(self, count: int) -> tuple[int, ...]:
        """Take `count` free rows, all or none.

        Raises
        ------
        NoFreeRows
            If fewer are free.
        ValueError
            If `count` is not positive.
        """
        if count < 1:
            raise ValueError(f"{count} rows were asked for, expected at least 1")
        with self._lock:
            if count > len(self._free):
                raise NoFreeRows(
                    f"{count} rows were asked for, {len(self._free)} of {self.rows} are free: finish or cancel a run, "
                    f"split the batch, or load the engine with a larger max_batch"
                )
            return tuple(sorted(self._free.pop() for _ in range(count)))

    def release(self, rows: Sequence[int]) -> None:
        """Give rows back; their lengths become 0.

        Raises
        ------
        ValueError
            If a row is free already or named twice; no row was released then.
        """
        with self._lock:
            for row in rows:
                self._check_row(row)
            refused = sorted(row for row in set(rows) if row in self._free or list(rows).count(row) > 1)
            if refused:
                raise ValueError(f"rows {refused} are free already or named twice: release each acquired row once")
            for row in rows:
                self.lengths[row] = 0
                self._free.append(row)
            self._free.sort(reverse=True)

    def check_room(self, row: int, count: int) -> None:
        """Raise CapacityError unless `count` more tokens fit into this row."""
        length = int(self.lengths[row])
        if length + count > self.capacity:
            raise CapacityError(
                f"row {row} holds {length} of {self.capacity} tokens, {count} more do not fit: shorten the prompt, "
                f"ask for fewer new tokens, or load the engine with a larger capacity"
            )

    def commit(self, row: int, count: int) -> None:
        """Count `count` more positions of this row as written.

        Raises
        ------
        CapacityError
            If they go past the capacity; the length stays as it was.
        """
        if count < 0:
            raise ValueError(f"{count} tokens cannot be committed: use truncate to make a row shorter")
        self.check_room(row, count)
        self.lengths[row] += count

    def truncate(self, row: int, length: int) -> None:
        """Go back to the first `length` tokens of this row; nothing is copied or cleared.

        Raises
        ------
        ValueError
            If the row holds fewer.
        """
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"row {row} holds {self.lengths[row]} tokens, it cannot be truncated to {length}")
        self.lengths[row] = length

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        """Make `target` hold what `source` holds, copying the used positions only, or the first `length` ones."""
        self._check_row(source)
        self._check_row(target)
        length = int(self.lengths[source]) if length is None else length
        if not 0 <= length <= self.capacity:
            raise ValueError(f"{length} positions cannot be copied: a row has {self.capacity}")
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]
        self.lengths[target] = length

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.rows:
            raise ValueError(f"there is no row {row}: the cache has rows 0 to {self.rows - 1}")
