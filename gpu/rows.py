"""What an engine checks and counts on the host before its device is asked, the same for every engine."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gpu.adapter import DEFAULT_RANK, Adapter
from gpu.checkpoint.config import ModelConfig
from gpu.kv_cache import LinearKVCache
from gpu.penalties import Penalties
from gpu.process import Home
from gpu.profile import DeviceProfile


@dataclass(slots=True, frozen=True)
class LoadedAdapter:
    """An adapter that an engine holds."""

    index: int  # of its place in the memory that was bound for adapters
    rank: int
    fingerprint: str
    nbytes: int  # that a step reads of it


class RowKeeper:
    """The part of an engine that knows of rows and of what may be written to them, but of no memory.

    Parameters
    ----------
    model : ModelConfig
        The shape of the model.
    rows, capacity : int
        Sequences that fit at once, and tokens that each can hold.
    kv_dtype : dtype
        Of keys and values as they go in and come out.
    kv_bytes : int, optional
        What one number of them takes in the cache; as many bytes as `kv_dtype` if not given.
    adapters, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        rows: int,
        capacity: int,
        kv_dtype: npt.DTypeLike = np.float32,
        kv_bytes: int | None = None,
        adapters: int = 0,
        max_lora_rank: int = DEFAULT_RANK,
    ) -> None:
        self.model = model
        self._kv_dtype = np.dtype(kv_dtype)
        self.kv_cache = LinearKVCache(rows, capacity, model.kv_numbers * (kv_bytes or self._kv_dtype.itemsize))
        self._home = Home()
        self.adapter_slots = adapters
        self.max_lora_rank = min(max_lora_rank, model.hidden)  # no change of a matrix has a higher rank
        self._adapters: dict[str, LoadedAdapter] = {}
        self._taking_places = threading.Lock()
        self._adapter_names: list[str | None] = [None] * rows  # [rows]

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]:
        """The adapters that were loaded, by name."""
        return dict(self._adapters)

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Put an adapter into memory that was bound for it."""
        with self._taking_places:
            new = self._new_adapter(name, adapter)
            self._place_adapter(new.index, adapter)
            self._adapters[name] = new

    def set_adapter(self, row: int, name: str | None) -> None:
        """Say which adapter this row has from now on."""
        self._check_row(row)
        if name is not None and name not in self._adapters:
            raise ValueError(
                f"there is no adapter {name!r:.80}: expected {' or '.join(map(repr, self._adapters)) or 'none'}"
            )
        self._adapter_names[row] = name

    def facts(self) -> dict[str, str | int]:
        """Nothing to tell, unless the engine has a choice or counts something."""
        return {}

    def profile(self, *, rows: int = 1, context: int = 128) -> DeviceProfile | None:
        """Nothing to measure, unless the engine computes where the host's clock does not reach."""
        return None

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_rows(self, rows: Sequence[int]) -> None:
        count = self.kv_cache.rows
        if len(set(rows)) != len(rows) or not all(0 <= row < count for row in rows):
            raise ValueError(f"rows are {list(rows)}, expected different ones from 0 to {count - 1}")

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.kv_cache.rows:
            raise ValueError(f"there is no row {row}: the engine has rows 0 to {self.kv_cache.rows - 1}")

    def _checked_prompt(self, row: int, ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """Give a prompt as an array, if it is one: 1 to capacity tokens of the vocabulary."""
        self._check_row(row)
        if not 1 <= len(ids) <= self.kv_cache.capacity:
            raise ValueError(
                f"the prompt of row {row} has {len(ids)} tokens, expected 1 to {self.kv_cache.capacity}, the capacity"
            )
        for token in (min(ids), max(ids)):
            self._check_token(row, token)
        return np.asarray(ids, np.int32)

    def _place_adapter(self, index: int, adapter: Adapter) -> None:
        """Put an adapter into the place of this index: whoever has places does that."""
        raise NotImplementedError

    def _adapter_index(self, row: int) -> int | None:
        """Give the index of the adapter that a row has."""
        name = self._adapter_names[row]
        return None if name is None else self._adapters[name].index

    def _adapter_bytes(self, rows: Iterable[int]) -> int:
        """Count the bytes of the adapters that these rows have, each once."""
        names = {self._adapter_names[row] for row in rows}
        return sum(adapter.nbytes for name, adapter in self._adapters.items() if name in names)

    def _new_adapter(self, name: str, adapter: Adapter) -> LoadedAdapter:
        """Give a new adapter its place, if it can have one."""
        if name in self._adapters:
            raise ValueError(f"there is an adapter {name!r:.80} already: choose another name")
        if len(self._adapters) == self.adapter_slots:
            raise ValueError(
                f"the engine has room for {self.adapter_slots} adapters, and as many are loaded: load it with "
                f"adapters={self.adapter_slots + 1}"
            )
        if adapter.rank > self.max_lora_rank:
            raise ValueError(
                f"the adapter has rank {adapter.rank}, the engine takes {self.max_lora_rank} at most: load it with "
                f"max_lora_rank={adapter.rank}"
            )
        return LoadedAdapter(len(self._adapters), adapter.rank, adapter.fingerprint, adapter.nbytes)

    def _check_token(self, row: int, token: int) -> None:
        self._check_row(row)
        if not 0 <= token < self.model.vocab:
            raise ValueError(f"row {row} is to hold token {token}, the model knows tokens 0 to {self.model.vocab - 1}")

    def _checked_history(self, row: int, first: int, tokens: Sequence[int]) -> npt.NDArray[np.int32]:
        """Give tokens of a row's history as an array, if they are tokens and have a place there."""
        self._check_positions(row, first, first + len(tokens))
        for token in (min(tokens), max(tokens)) if tokens else ():
            self._check_token(row, token)
        return np.asarray(tokens, np.int32)

    def _check_penalties(self, row: int, penalties: Penalties) -> None:
        self._check_row(row)
        penalties.check(self.model.vocab)

    def _check_logits(self, row: int, logits: npt.NDArray[Any]) -> None:
        self._check_row(row)
        if logits.shape != (self.model.vocab,) or logits.dtype != np.float32:
            raise ValueError(
                f"logits are {logits.dtype} {list(logits.shape)}, expected float32 {[self.model.vocab]}, the vocabulary"
            )

    def _check_mask(self, row: int, allowed: npt.NDArray[Any]) -> None:
        self._check_row(row)
        words = -(-self.model.vocab // 32)
        if allowed.shape != (words,) or allowed.dtype != np.uint32:
            raise ValueError(
                f"a mask is {allowed.dtype} {list(allowed.shape)}, expected uint32 {[words]}: a bit for each of "
                f"{self.model.vocab} tokens"
            )

    def _check_positions(self, row: int, first: int, last: int) -> None:
        self._check_row(row)
        if not 0 <= first <= last <= self.kv_cache.capacity:
            raise ValueError(f"a row has no positions {first} to {last}, only 0 to {self.kv_cache.capacity}")

    def _check_stretch(self, row: int, first: int, array: npt.NDArray[Any]) -> slice:
        """Give the positions that a stretch of the cache fills, if it is one of this engine's."""
        model = self.model
        expected = (model.layers, 2, model.kv_heads, array.shape[3] if array.ndim == 5 else 0, model.head_dim)
        if array.shape != expected or array.dtype != self._kv_dtype:
            raise ValueError(
                f"a stretch of the cache is {array.dtype} {list(array.shape)}, expected {self._kv_dtype} "
                f"[layers {model.layers}, 2, heads {model.kv_heads}, positions, {model.head_dim}]"
            )
        self._check_positions(row, first, first + array.shape[3])
        self.kv_cache.change(row)
        return slice(first, first + array.shape[3])

    def _set_length(self, row: int, length: int) -> None:
        self.kv_cache.change(row)
        self.kv_cache.truncate(row, 0)
        self.kv_cache.commit(row, length)

    def _copied_length(self, source: int, target: int, length: int | None) -> int:
        """Give how many positions `copy_row` copies."""
        self._check_row(target)
        self._check_row(source)
        length = self.kv_cache.length(source) if length is None else length
        self._check_positions(source, 0, length)
        return length
