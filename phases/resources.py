"""What a generation holds of its engine: rows of the buffers and of the KV cache, and what is in them."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpu import CapacityError, Engine
from phases.context import Generation
from phases.request import GenerationRequest
from phases.tokenizer import Tokenizer
from statemachine.execution.resources import Arrays, Resources

PAGE = 64  # positions of the cache that a snapshot keeps together


class EngineResources(Resources[Generation]):
    """The rows of one engine, handed out to generations and taken back when they end or are forgotten.

    Going back in time needs no copy and no computation: the cache is linear and append-only, so it is enough to set
    lengths. Logits are another matter: they are those of the last token computed, so a generation that went back
    marks them stale, and `Generation.fresh_logits` decodes one token again when somebody needs them.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | None, environment: Callable[[], dict[str, Any]] = dict
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._environment = environment

    def lend(self, request: GenerationRequest, capacity: int | None = None) -> Generation:
        """A context with rows of its own, that may hold so many tokens each; raises NoFreeRows, CapacityError."""
        cache = self._engine.kv_cache
        if capacity is not None and not 1 <= capacity <= cache.capacity:
            raise CapacityError(
                f"rows of {capacity} tokens were asked for, the engine's hold {cache.capacity}: load it with a larger "
                f"capacity"
            )
        slots = cache.acquire(len(request.requests))
        context = Generation(request, slots, capacity or cache.capacity, engine=self._engine, tokenizer=self._tokenizer)
        context.lease = weakref.finalize(context, cache.release, slots)  # runs once, at the latest when it is forgotten
        context.lease.atexit = False
        return context

    def release(self, context: Generation) -> None:
        if context.lease:
            context.lease()

    def sync(self, context: Generation) -> None:
        """Set lengths, input ids, sampling parameters and next tokens to what the host fields say."""
        cache = context.bound_engine.kv_cache
        for row, slot in enumerate(context.slots):
            if context.cached[row] > context.filled[row]:
                raise RuntimeError(
                    f"row {row} should hold {context.cached[row]} tokens, but {context.filled[row]} are there"
                )
            cache.truncate(slot, 0)
            cache.commit(slot, context.cached[row])
        context.bind()
        context.stale = any(context.cached)

    def rebuild(self, context: Generation) -> None:
        """Fill the cache by a prefill of all tokens that it should hold."""
        context.recompute()

    def fork(self, context: Generation) -> Generation:
        fork = self.lend(context.request, context.capacity)
        cache = self._engine.kv_cache
        for source, target, filled in zip(context.slots, fork.slots, context.filled, strict=True):
            cache.copy_row(source, target, length=filled)
        fork.filled = list(context.filled)
        fork.prompt_logits = context.prompt_logits
        return fork

    def save(self, context: Generation, *, kv: str = "copy", **unknown: Any) -> Arrays:
        """The used part of the cache, the logits that each prompt left and, unless they are stale, those of each row.

        With `kv="recompute"` nothing: the ids are enough to compute all that again, by a prefill (whose bits may
        differ from those that decode steps left).
        """
        if kv not in ("copy", "recompute") or unknown:
            raise ValueError(f'a snapshot takes kv="copy" or kv="recompute", not { ({"kv": kv} | unknown)!r}')
        engine = context.bound_engine
        arrays: dict[str, Any] = {}
        if kv == "recompute":
            return arrays
        for row, slot in enumerate(context.slots):
            for page, positions in _pages(context.cached[row]):
                arrays[f"kv.{row}.{page}"] = engine.kv_cache.data[:, :, slot, :, positions]
            if any(context.cached) and not context.stale:
                arrays[f"logits.{row}"] = engine.buffers.logits[slot]
            if context.cached[row] and row in context.prompt_logits:
                arrays[f"prompt_logits.{row}"] = context.prompt_logits[row]
        return arrays

    def load(self, context: Generation, arrays: Arrays, *, kv: str = "copy", **unknown: Any) -> None:
        """Take back what `save` gave, into the rows that this context has now, or compute it again."""
        engine = context.bound_engine
        if kv == "recompute":
            context.recompute()
            return
        for row, slot in enumerate(context.slots):
            layers, sides, kv_heads, _, head_dim = engine.kv_cache.data[:, :, slot].shape
            for page, positions in _pages(context.cached[row]):
                shape = (layers, sides, kv_heads, positions.stop - positions.start, head_dim)
                saved = _expect(arrays, f"kv.{row}.{page}", shape, engine.kv_cache.data.dtype)
                engine.kv_cache.data[:, :, slot, :, positions] = saved
            context.filled[row] = context.cached[row]
        fresh = [name for name in arrays if name.startswith("logits.")]
        self.sync(context)
        vocab, dtype = (engine.model.vocab,), engine.buffers.logits.dtype
        for row, slot in enumerate(context.slots):
            if f"prompt_logits.{row}" in arrays:
                context.prompt_logits[row] = _expect(arrays, f"prompt_logits.{row}", vocab, dtype)
            if fresh:
                engine.buffers.logits[slot] = _expect(arrays, f"logits.{row}", vocab, dtype)
                context.stale = False

    def environment(self) -> dict[str, Any]:
        return self._environment()


def _pages(length: int) -> Iterator[tuple[int, slice]]:
    """Numbered stretches of positions: a full one never changes, so that a later snapshot need not hold it again."""
    for page, start in enumerate(range(0, length, PAGE)):
        yield page, slice(start, min(start + PAGE, length))


def _expect(arrays: Arrays, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Any:
    array = arrays.get(name)
    if array is None or array.shape != shape or array.dtype != dtype:
        found = "is missing" if array is None else f"is {array.dtype} {list(array.shape)}"
        raise ValueError(f"array {name!r} {found}, but {dtype} {list(shape)} was expected")
    return array
