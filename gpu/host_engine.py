"""What engines whose memory is the host's share: every verb but prefill and decode."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.adapter import DEFAULT_RANK
from gpu.buffers import BufferInfo, Buffers
from gpu.checkpoint.config import ModelConfig
from gpu.errors import LogitsError
from gpu.masking import mask_logits
from gpu.penalties import NONE, Penalties, penalised
from gpu.rows import RowKeeper
from gpu.sampling import check_sampling, sample

Float32Array = npt.NDArray[np.float32]


class HostEngine(RowKeeper):
    """A synchronous engine over `Buffers`; see `gpu.engine.Engine` for what the verbs mean."""

    synchronous = True

    def __init__(
        self,
        model: ModelConfig,
        *,
        rows: int,
        capacity: int,
        adapters: int = 0,
        max_lora_rank: int = DEFAULT_RANK,
    ) -> None:
        self.buffers = Buffers.allocate(model, rows=rows, capacity=capacity)
        super().__init__(model, rows=rows, capacity=capacity, adapters=adapters, max_lora_rank=max_lora_rank)
        self._lock = threading.Lock()  # one call at a time computes
        self._penalties: list[tuple[Penalties, Float32Array | None]] = [(NONE, None)] * rows  # each with its biases

    def write_prompt(self, row: int, ids: Sequence[int]) -> None:
        """Set the tokens that the next prefill feeds."""
        prompt = self._checked_prompt(row, ids)
        self.buffers.input_ids[row, : len(prompt)] = prompt
        self.buffers.input_lengths[row] = len(prompt)

    def set_sampling(self, row: int, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Say how this row is sampled from now on."""
        self._check_row(row)
        check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        buffers = self.buffers
        buffers.temperature[row] = temperature
        buffers.top_k[row] = min(top_k, np.iinfo(np.int32).max)
        buffers.top_p[row] = top_p
        buffers.min_p[row] = min_p
        buffers.seed[row] = seed

    def set_penalties(self, row: int, penalties: Penalties) -> None:
        """Say what changes this row's logits before a token is drawn from now on."""
        self._check_penalties(row, penalties)
        self._penalties[row] = penalties, penalties.biases(self.model.vocab)

    def write_history(self, row: int, first: int, tokens: Sequence[int]) -> None:
        """Say which tokens stand in the row from position `first` on."""
        written = self._checked_history(row, first, tokens)
        self.buffers.history[row, first : first + len(written)] = written

    def write_token(self, row: int, token: int) -> None:
        """Set the row's next token."""
        self._check_token(row, token)
        self.buffers.next_token[row] = token

    def sample(self, rows: Sequence[int]) -> None:
        """Draw the next token of each row, see `gpu.sampling`."""
        self._home.check()
        with self._lock:
            self._check_rows(rows)
            buffers, refused = self.buffers, dict[int, LogitsError]()
            for row in rows:
                try:
                    buffers.next_token[row] = sample(
                        self._drawn_from(row),
                        temperature=float(buffers.temperature[row]),
                        top_k=int(buffers.top_k[row]),
                        top_p=float(buffers.top_p[row]),
                        min_p=float(buffers.min_p[row]),
                        seed=int(buffers.seed[row]),
                        position=self.kv_cache.length(row),
                    )
                except LogitsError as error:
                    refused[row] = error
            if refused:
                raise LogitsError.of(refused)

    def sampled(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Give the drawn tokens; here they are on the host already."""
        return tuple(int(self.buffers.next_token[row]) for row in rows)

    def read_logits(self, row: int, *, kept: bool = False) -> Float32Array:
        """Give a copy of the row's logits, or of its kept ones."""
        self._check_row(row)
        logits: Float32Array = self._logits(kept)[row].copy()
        return logits

    def write_logits(self, row: int, logits: Float32Array, *, kept: bool = False) -> None:
        """Replace the row's logits, or its kept ones."""
        self._check_logits(row, logits)
        self._logits(kept)[row] = logits

    def mask_logits(self, row: int, allowed: npt.NDArray[np.uint32]) -> None:
        """Set the row's logits to -inf but for the tokens whose bit is set."""
        self._check_mask(row, allowed)
        mask_logits(self.buffers.logits[row], allowed)

    def keep_logits(self, row: int) -> None:
        """Put a copy of the row's logits aside."""
        self.write_logits(row, self.buffers.logits[row], kept=True)

    def restore_logits(self, row: int) -> None:
        """Make the kept logits the row's logits again."""
        self.write_logits(row, self.buffers.kept_logits[row])

    def export_kv(self, row: int, first: int, last: int) -> npt.NDArray[Any]:
        """Give a copy of the keys and values at positions `first` to `last` - 1."""
        self._check_positions(row, first, last)
        return self.buffers.kv_cache[:, :, row, :, first:last].copy()

    def import_kv(self, row: int, first: int, array: npt.NDArray[Any]) -> None:
        """Write keys and values at positions from `first` on."""
        positions = self._check_stretch(row, first, array)
        self.buffers.kv_cache[:, :, row, :, positions] = array

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        """Make `target` hold what `source` holds."""
        length, buffers = self._copied_length(source, target, length), self.buffers
        buffers.kv_cache[:, :, target, :, :length] = buffers.kv_cache[:, :, source, :, :length]
        for array in (buffers.history, buffers.logits, buffers.kept_logits, buffers.next_token):
            array[target] = array[source]
        self._set_length(target, length)

    def memory(self) -> tuple[BufferInfo, ...]:
        """Tell where every buffer lies."""
        return tuple(self.buffers)

    def peek(self, row: int) -> dict[str, int | float]:
        """Give what the small buffers hold for this row."""
        self._check_row(row)
        return self.buffers.values(row)

    def _prompts(self, rows: Sequence[int]) -> list[npt.NDArray[np.int32]]:
        """Give the tokens that prefill is to feed each of these rows, if all of them can be fed."""
        self._check_rows(rows)
        prompts = []
        for row in rows:
            count = int(self.buffers.input_lengths[row])
            if not count:
                raise ValueError(f"row {row} has no prompt to feed: write one first")
            self.kv_cache.check_room(row, count)
            prompts.append(self.buffers.input_ids[row, :count])
        return prompts

    def _drawn_from(self, row: int) -> Float32Array:
        """Give the logits of a row as its penalties leave them."""
        penalties, biases = self._penalties[row]
        logits: Float32Array = self.buffers.logits[row]
        if penalties == NONE:
            return logits
        return penalised(logits, self.buffers.history[row, : self.kv_cache.length(row)], penalties, biases=biases)

    def _logits(self, kept: bool) -> Float32Array:
        return self.buffers.kept_logits if kept else self.buffers.logits
