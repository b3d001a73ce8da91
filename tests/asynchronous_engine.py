"""An engine that is as asynchronous as its contract allows: it does nothing at all until somebody waits."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpu import Adapter, BufferInfo, HostEngine, LogitsError, Penalties, RowKeeper, check_sampling


class AsynchronousEngine(RowKeeper):
    """Hands each call on to a synchronous engine, its device, whose memory the host never sees.

    Work is queued as it is launched. It is done in that order, by a thread of its own, when a call waits; so whoever
    relies on something that it has not waited for finds nothing there. Lengths are counted at launch.
    """

    name = "asynchronous"
    synchronous = False

    def __init__(self, device: HostEngine) -> None:
        super().__init__(
            device.model, rows=device.kv_cache.rows, capacity=device.kv_cache.capacity,
            adapters=device.adapter_slots, max_lora_rank=device.max_lora_rank,
        )  # fmt: skip
        self.prefill_chunk = device.prefill_chunk
        self.waits = 0
        self._device = device
        self._prompts = [0] * self.kv_cache.rows  # tokens of each
        self._launched: list[tuple[Sequence[int], Callable[[], None]]] = []
        self._failed: dict[int, Exception] = {}  # by row
        self._order = threading.Lock()
        self._thread = ThreadPoolExecutor(1)
        self._closed = False

    @property
    def buffers(self) -> Any:
        raise AssertionError("the memory of a device cannot be indexed by the host")

    # --- launches -----------------------------------------------------------------------------------------------

    def write_prompt(self, row: int, ids: Sequence[int]) -> None:
        prompt = self._checked_prompt(row, ids)
        self._prompts[row] = len(prompt)
        self._launch([row], lambda: self._device.write_prompt(row, prompt))

    def set_sampling(self, row: int, **parameters: Any) -> None:
        self._check_row(row)
        check_sampling(**parameters)
        self._launch([row], lambda: self._device.set_sampling(row, **parameters))

    def set_penalties(self, row: int, penalties: Penalties) -> None:
        self._check_penalties(row, penalties)
        self._launch([row], lambda: self._device.set_penalties(row, penalties))

    def _place_adapter(self, index: int, adapter: Adapter) -> None:
        name = str(index)  # the device need not know what the host calls it
        self._launch([], lambda: self._device.load_adapter(name, adapter))

    def set_adapter(self, row: int, name: str | None) -> None:
        super().set_adapter(row, name)
        index = self._adapter_index(row)
        self._launch([row], lambda: self._device.set_adapter(row, None if index is None else str(index)))

    def write_history(self, row: int, first: int, tokens: Sequence[int]) -> None:
        written = self._checked_history(row, first, tokens).tolist()
        self._launch([row], lambda: self._device.write_history(row, first, written))

    def write_token(self, row: int, token: int) -> None:
        self._check_token(row, token)
        self._launch([row], lambda: self._device.write_token(row, token))

    def prefill(self, rows: Sequence[int]) -> None:
        self._check(rows)
        for row in rows:
            if not self._prompts[row]:
                raise ValueError(f"row {row} has no prompt to feed")
            self.kv_cache.check_room(row, self._prompts[row])
        self._compute(rows, self._device.prefill)
        for row in rows:
            self.kv_cache.commit(row, self._prompts[row])

    def decode(self, rows: Sequence[int]) -> None:
        self._check(rows)
        for row in rows:
            self.kv_cache.check_room(row, 1)
        self._compute(rows, self._device.decode)
        for row in rows:
            self.kv_cache.commit(row, 1)

    def sample(self, rows: Sequence[int]) -> None:
        self._check(rows)
        self._compute(rows, self._device.sample)

    def write_logits(self, row: int, logits: np.ndarray, *, kept: bool = False) -> None:
        self._check_logits(row, logits)
        copied = logits.copy()
        self._launch([row], lambda: self._device.write_logits(row, copied, kept=kept))

    def mask_logits(self, row: int, allowed: np.ndarray) -> None:
        self._check_mask(row, allowed)
        copied = allowed.copy()
        self._launch([row], lambda: self._device.mask_logits(row, copied))

    def keep_logits(self, row: int) -> None:
        self._check_row(row)
        self._launch([row], lambda: self._device.keep_logits(row))

    def restore_logits(self, row: int) -> None:
        self._check_row(row)
        self._launch([row], lambda: self._device.restore_logits(row))

    def import_kv(self, row: int, first: int, array: np.ndarray) -> None:
        self._check_stretch(row, first, array)
        copied = array.copy()
        self._launch([row], lambda: self._device.import_kv(row, first, copied))

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        copied = self._copied_length(source, target, length)
        self._launch([source, target], lambda: self._device.copy_row(source, target, length=copied))
        self._set_length(target, copied)

    # --- waits --------------------------------------------------------------------------------------------------

    def sampled(self, rows: Sequence[int]) -> tuple[int, ...]:
        return self._wait(rows, lambda: self._device.sampled(rows))

    def read_logits(self, row: int, *, kept: bool = False) -> np.ndarray:
        self._check_row(row)
        return self._wait([row], lambda: self._device.read_logits(row, kept=kept))

    def export_kv(self, row: int, first: int, last: int) -> np.ndarray:
        self._check_positions(row, first, last)
        return self._wait([row], lambda: self._device.export_kv(row, first, last))

    def peek(self, row: int) -> dict[str, int | float]:
        self._check_row(row)
        return self._wait([row], lambda: self._device.peek(row))

    # --- neither ------------------------------------------------------------------------------------------------

    def memory(self) -> tuple[BufferInfo, ...]:
        return self._device.memory()

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        used = sum(self.kv_cache.length(row) for row in rows)
        embedding = len(rows) * self.model.hidden * 4
        adapters = self._adapter_bytes(rows)
        return self._device.bytes_per_token(()) + adapters + embedding + used * self.kv_cache.bytes_per_position

    def environment(self) -> dict[str, Any]:
        return self._device.environment() | {"engine": self.name}

    def close(self) -> None:
        self._closed = True
        self._device.close()
        self._thread.shutdown()

    def _check(self, rows: Sequence[int]) -> None:
        self._home.check()
        if self._closed:
            raise RuntimeError("the engine is closed: load it again")
        self._check_rows(rows)

    def _compute(self, rows: Sequence[int], work: Callable[[Sequence[int]], None]) -> None:
        """Launch work of the device, with the lengths that these rows have now."""
        lengths = {row: self.kv_cache.length(row) for row in rows}

        def compute() -> None:
            for row, length in lengths.items():
                self._device.kv_cache.truncate(row, 0)
                self._device.kv_cache.commit(row, length)
            work(list(lengths))

        self._launch(rows, compute)

    def _launch(self, rows: Sequence[int], work: Callable[[], None]) -> None:
        with self._order:
            self._launched.append((tuple(rows), work))

    def _wait(self, rows: Sequence[int], read: Callable[[], Any]) -> Any:
        """Have all that was launched done, read something, and raise what went wrong with these rows."""
        with self._order:
            self.waits += 1
            launched, self._launched = self._launched, []
            done = self._thread.submit(self._do, launched, read)
        found = done.result()
        failed = {row: self._failed.pop(row) for row in rows if row in self._failed}
        if refused := {row: error for row, error in failed.items() if isinstance(error, LogitsError)}:
            raise LogitsError.of(refused)
        for error in failed.values():
            raise error
        return found

    def _do(self, launched: list[tuple[Sequence[int], Callable[[], None]]], read: Callable[[], Any]) -> Any:
        for rows, work in launched:
            try:
                work()
            except LogitsError as error:
                self._failed |= {row: LogitsError(words, {row: words}) for row, words in error.rows.items()}
            except Exception as error:
                self._failed |= dict.fromkeys(rows, error)
        return read()
