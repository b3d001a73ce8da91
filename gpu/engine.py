"""The contract of an engine: what it holds and the six things it does."""

from collections.abc import Sequence
from typing import Any, Protocol

from gpu.buffers import Buffers
from gpu.checkpoint.config import ModelConfig
from gpu.kv_cache import LinearKVCache


class Engine(Protocol):
    """Runs one model on rows of pre-bound buffers.

    A row is one sequence's place in every buffer and in the cache. All methods may be called from several threads;
    calls on different rows do not disturb one another, and a row's tokens do not depend on who shares its batch.

    Attributes
    ----------
    name : str
        The name under which `load_engine` knows it.
    synchronous : bool
        True if `sample` leaves the token known to the host at once, so that waiting for it costs nothing.
    model : ModelConfig
        The model that it runs.
    buffers : Buffers
        Where callers put tokens and find logits; bound once, their addresses never change.
    kv_cache : LinearKVCache
        Keys and values of every row; it counts which rows are free.
    """

    name: str
    synchronous: bool
    model: ModelConfig
    buffers: Buffers
    kv_cache: LinearKVCache

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed `buffers.input_ids[row, :input_lengths[row]]` after the tokens that the cache already holds.

        Leaves the logits of the last token in `buffers.logits[row]` and commits the lengths after the work succeeded.

        Raises
        ------
        CapacityError
            If the tokens do not fit behind those already cached; nothing was computed then.
        ValueError
            If a length or a token id is out of range, or rows repeat.
        """
        ...

    def decode(self, rows: Sequence[int]) -> None:
        """Feed `buffers.next_token[row]`, one token a row; leaves logits in `buffers.logits[row]`, commits one each.

        Raises
        ------
        CapacityError
            If a row is full; nothing was computed then.
        ValueError
            If a token id is out of range, or rows repeat.
        """
        ...

    def sample(self, rows: Sequence[int]) -> None:
        """Draw `buffers.next_token[row]` from `buffers.logits[row]`; its absolute position is `kv_cache.lengths[row]`.

        Raises
        ------
        LogitsError
            If a row's logits hold NaN or +inf, or are all -inf.
        """
        ...

    def sampled(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Wait until the drawn tokens have reached the host and give them: the only wait of an engine."""
        ...

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads: the weights once, and each row's used cache."""
        ...

    def environment(self) -> dict[str, Any]:
        """Everything about this engine that can change a bit, as plain JSON values.

        At least `engine`, `dtype`, `rows`, `capacity` and `threads`, and the versions of what computes.
        """
        ...

    def close(self) -> None:
        """Give the weights back; the engine computes no more."""
        ...
