"""The contract of an engine: what it holds, what it computes, and the verbs by which values go in and come out.

`RowKeeper` has what every engine checks and counts on the host, `HostEngine` all but prefill and decode for one whose
memory is the host's. An engine keeps the contract when `tests/gpu/conformance` passes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpu.adapter import Adapter
from gpu.buffers import BufferInfo
from gpu.checkpoint.config import ModelConfig
from gpu.kv_cache import LinearKVCache
from gpu.penalties import Penalties
from gpu.profile import DeviceProfile
from gpu.rows import LoadedAdapter


class Engine(Protocol):
    """Runs one model on rows of memory that was bound once, and that nobody but the engine indexes.

    A row is one sequence's place: a prompt, how it is sampled, an adapter or none, a history for penalties, a next
    token, logits, *kept* logits (those that `keep_logits` put aside) and a stretch of the KV cache. All methods may be
    called from several threads; calls on different rows do not disturb one another, and a row's tokens do not depend on
    who shares its batch.

    Work and values take effect in the order of the calls. An asynchronous engine may return from any of them before
    the work is done, and raise what went wrong with it from a later call that waits. These wait: `sampled`,
    `read_logits`, `export_kv`, `peek`. No other one does, and what is passed in may be changed as soon as a call
    returns.

    Attributes
    ----------
    name : str
        The name under which `load_engine` knows it.
    synchronous : bool
        True if `sample` leaves the token known to the host at once, so that waiting for it costs nothing.
    model : ModelConfig
        The model that it runs.
    kv_cache : LinearKVCache
        Which rows are free, and how many tokens each holds. Its books are the host's: reading them waits for nothing.
    prefill_chunk : int
        Where a prompt may be cut: fed in pieces, each a multiple of so many tokens but the last, it leaves the bits
        that it leaves if it is fed whole.
    adapter_slots, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most: memory is bound for them as the engine is
        loaded, and none at all for none.
    """

    name: str
    synchronous: bool
    model: ModelConfig
    kv_cache: LinearKVCache
    prefill_chunk: int
    adapter_slots: int
    max_lora_rank: int

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]:
        """The LoRA adapters that were loaded, by name."""
        ...

    # --- what goes in -------------------------------------------------------------------------------------------

    def write_prompt(self, row: int, ids: Sequence[int]) -> None:
        """Set the tokens that the next prefill of this row feeds.

        Raises
        ------
        ValueError
            If there are none or more than the capacity, or an id is out of range.
        """
        ...

    def set_sampling(self, row: int, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Say how this row is sampled from now on; see `gpu.sampling` for what the parameters mean.

        Raises
        ------
        ValueError
            If a parameter is out of its range.
        """
        ...

    def set_penalties(self, row: int, penalties: Penalties) -> None:
        """Say what changes this row's logits before a token is drawn from now on; see `gpu.penalties`.

        Raises
        ------
        ValueError
            If a parameter is out of its range.
        """
        ...

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Put a LoRA adapter into memory that was bound for it, where it stays.

        Raises
        ------
        ValueError
            If there is one of that name, no room, or its rank is above `max_lora_rank`.
        """
        ...

    def set_adapter(self, row: int, name: str | None) -> None:
        """Say which adapter, or none, adds to the products of this row from now on; what its cache holds stays.

        Rows of one batch may have different ones. A row without any has the bits of an engine without any. Whoever
        takes a row says which it has, as another may have had it before.

        Raises
        ------
        ValueError
            If no adapter of that name was loaded.
        """
        ...

    def write_history(self, row: int, first: int, tokens: Sequence[int]) -> None:
        """Say which tokens stand in the row from position `first` on: those that penalties look at.

        Neither `prefill` nor `decode` does that. `sample` looks at those before position `kv_cache.length(row)`.

        Raises
        ------
        ValueError
            If a token is out of range, or the positions lie outside the row.
        """
        ...

    def write_token(self, row: int, token: int) -> None:
        """Set the row's next token: what `decode` feeds and `sampled` gives.

        Raises
        ------
        ValueError
            If the token is out of range.
        """
        ...

    # --- what is computed ---------------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed each row's prompt after the tokens that its cache already holds.

        Leaves the logits of the last token, and commits the lengths after the work succeeded, or was launched.

        Raises
        ------
        CapacityError
            If the tokens do not fit behind those already cached; nothing was computed then.
        ValueError
            If a row has no prompt, or rows repeat.
        """
        ...

    def decode(self, rows: Sequence[int]) -> None:
        """Feed each row's next token; leaves logits and commits one position each, as `prefill` does.

        Raises
        ------
        CapacityError
            If a row is full; nothing was computed then.
        ValueError
            If rows repeat.
        """
        ...

    def sample(self, rows: Sequence[int]) -> None:
        """Draw each row's next token from its logits; its absolute position is `kv_cache.length(row)`.

        Penalties change what it is drawn from, but not the logits that are there.

        Raises
        ------
        LogitsError
            If logits hold NaN or +inf, or are all -inf; it names the rows, and tokens were drawn for all others.
        """
        ...

    def sampled(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Wait until the next token of each row has reached the host, and give them: the one wait of a decode step.

        Raises
        ------
        LogitsError
            As `sample` does, if that did not wait.
        """
        ...

    # --- logits -------------------------------------------------------------------------------------------------

    def read_logits(self, row: int, *, kept: bool = False) -> npt.NDArray[np.float32]:
        """Wait for the row's logits, or its kept ones, and give a copy: [vocab] float32."""
        ...

    def write_logits(self, row: int, logits: npt.NDArray[np.float32], *, kept: bool = False) -> None:
        """Replace the row's logits, or its kept ones; raises ValueError unless they are [vocab] float32."""
        ...

    def mask_logits(self, row: int, allowed: npt.NDArray[np.uint32]) -> None:
        """Set the row's logits to -inf but for the tokens whose bit is set, where the logits are.

        Parameters
        ----------
        allowed : ndarray, [ceil(vocab / 32)] uint32
            Token t has bit t % 32 of word t // 32; bits beyond the vocabulary mean nothing.

        Raises
        ------
        ValueError
            Unless the bits are as many and of that type.
        """
        ...

    def keep_logits(self, row: int) -> None:
        """Put a copy of the row's logits aside, instead of those kept before."""
        ...

    def restore_logits(self, row: int) -> None:
        """Make the kept logits the row's logits again."""
        ...

    # --- the cache ----------------------------------------------------------------------------------------------

    def export_kv(self, row: int, first: int, last: int) -> npt.NDArray[Any]:
        """Wait for the keys and values at positions `first` to `last` - 1, and give a copy.

        Returns
        -------
        ndarray, [layers, 2 (keys, values), kv_heads, last - first, head_dim]
            In the dtype of the engine's cache.
        """
        ...

    def import_kv(self, row: int, first: int, array: npt.NDArray[Any]) -> None:
        """Write keys and values at positions from `first` on, as `export_kv` gave them; lengths stay as they are.

        Raises
        ------
        ValueError
            If shape or dtype are not those of this engine, or the positions lie outside the row.
        """
        ...

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        """Make `target` hold what `source` holds: cache, history, logits, kept logits and next token.

        Copies the used positions of the cache, or the first `length` ones, and makes that the target's length.
        """
        ...

    # --- what there is to see -----------------------------------------------------------------------------------

    def memory(self) -> tuple[BufferInfo, ...]:
        """Tell where everything lies that was bound once."""
        ...

    def peek(self, row: int) -> dict[str, int | float]:
        """Wait, and give the value that each buffer with one number a row holds for this one."""
        ...

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads: the weights once, and each row's used cache."""
        ...

    def environment(self) -> dict[str, Any]:
        """Everything about this engine that can change a bit, as plain JSON values.

        At least `engine`, `dtype`, `rows`, `capacity` and `threads`, and the versions of what computes.
        """
        ...

    def facts(self) -> dict[str, str | int]:
        """Tell a person what changes no bit or is counted: which way the engine took and why, by name."""
        ...

    def profile(self, *, rows: int = 1, context: int = 128) -> DeviceProfile | None:
        """Measure on the device where the time of a step goes, while nothing else runs on it.

        Parameters
        ----------
        rows : int
            How many take a step together.
        context : int
            Tokens that each of them holds.

        Returns
        -------
        DeviceProfile, optional
            None if the engine has no clock that knows more than the host's.

        Raises
        ------
        CapacityError
            If the rows do not hold so many tokens, and a few more.
        NoFreeRows
            If fewer are free.
        """
        ...

    def close(self) -> None:
        """Give the weights back; the engine computes no more."""
        ...
