"""What a generation holds of its engine: rows, and what is in them."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gpu import CapacityError, DeviceError, Engine
from phases.context import Generation
from phases.prompt_cache import PromptCache
from phases.request import GenerationRequest
from phases.resting_rows import RestingRows
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
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        environment: Callable[[], dict[str, Any]] = dict,
        prompt_cache: PromptCache | RestingRows | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._environment = environment
        self._prompt_cache = prompt_cache

    def lend(self, request: GenerationRequest, capacity: int | None = None) -> Generation:
        """A context with rows of its own, that may hold so many tokens each; raises NoFreeRows, CapacityError.

        The rows have their adapters from here on: that changes no more as long as they are lent.
        """
        cache = self._engine.kv_cache
        if capacity is not None and not 1 <= capacity <= cache.capacity:
            raise CapacityError(
                f"rows of {capacity} tokens were asked for, the engine's hold {cache.capacity}: load it with a larger "
                f"capacity"
            )
        slots = cache.acquire(len(request.requests))
        try:
            for slot, row in zip(slots, request.requests, strict=True):
                self._engine.set_adapter(slot, row.lora_weights_name or None)
        except BaseException:
            cache.release(slots)
            raise
        context = Generation(
            request, slots, capacity or cache.capacity, engine=self._engine, tokenizer=self._tokenizer,
            prompt_cache=self._prompt_cache,
        )  # fmt: skip
        context.lease = weakref.finalize(context, cache.release, slots)  # runs once, at the latest when it is forgotten
        context.lease.atexit = False
        return context

    def release(self, context: Generation) -> None:
        """Give the rows back, after the prompt cache has taken what it wants of them.

        It waits for a device only here, where the run has ended, so that none of its decode steps is held up.
        """
        if context.lease and context.lease.alive:
            try:
                with suppress(DeviceError):  # a device that failed has nothing to give
                    context.keep_prompts()
            finally:
                context.lease()

    def sync(self, context: Generation) -> None:
        """Set lengths, prompts, sampling parameters and next tokens to what the host fields say."""
        if context.filled_in != context.turn and any(context.cached):  # another turn may have written over this one
            self.rebuild(context)
            return
        for row, (cached, filled) in enumerate(zip(context.cached, context.filled, strict=True)):
            if cached > filled:
                raise RuntimeError(f"row {row} should hold {cached} tokens, but {filled} are there")
        context.bind()
        context.stale = any(context.cached)

    def rebuild(self, context: Generation) -> None:
        """The host fields came from a record alone: compute what the engine should hold for them."""
        context.recompute()

    def fork(self, context: Generation) -> Generation:
        fork = self.lend(context.request, context.capacity)
        for source, target, filled in zip(context.slots, fork.slots, context.filled, strict=True):
            self._engine.copy_row(source, target, length=filled)
        fork.filled, fork.filled_in = list(context.filled), context.filled_in
        fork.exact, fork.found = list(context.exact), list(context.found)
        fork.adjusters = context.adjusters
        return fork

    def save(self, context: Generation, *, kv: str = "copy", **unknown: Any) -> Arrays:
        """The used part of the cache, the logits that each whole prompt left and, unless they are stale, each row's.

        With `kv="recompute"` nothing: the ids are enough to compute all that again, by a prefill (whose bits may
        differ from those that decode steps left).
        """
        if kv not in ("copy", "recompute") or unknown:
            raise ValueError(f'a snapshot takes kv="copy" or kv="recompute", not { ({"kv": kv} | unknown)!r}')
        engine = context.bound_engine
        arrays: dict[str, Any] = {}
        if kv == "recompute":
            return arrays
        # A token that only this engine knows is drawn again when the snapshot is resumed, over logits made anew.
        fresh = not context.stale and not context.token_unknown
        for row, slot in enumerate(context.slots):
            if not context.cached[row]:
                continue
            for page, first, last in _pages(context.cached[row]):
                arrays[f"kv.{row}.{page}"] = engine.export_kv(slot, first, last)
            if not context.prompt_filled(row):
                continue
            arrays[f"prompt_logits.{row}"] = engine.read_logits(slot, kept=True)
            if fresh:
                arrays[f"logits.{row}"] = engine.read_logits(slot)
        return arrays

    def load(self, context: Generation, arrays: Arrays, *, kv: str = "copy", **unknown: Any) -> None:
        """Take back what `save` gave, into the rows that this context has now, or compute it again."""
        if kv == "recompute":
            context.recompute()
            return
        engine = context.bound_engine
        fresh = any(name.startswith("logits.") for name in arrays)
        for row, slot in enumerate(context.slots):
            if not context.cached[row]:
                continue
            for page, first, last in _pages(context.cached[row]):
                with _named(arrays, f"kv.{row}.{page}") as stretch:
                    if stretch.ndim != 5 or stretch.shape[3] != last - first:
                        raise ValueError(f"it is {list(stretch.shape)}, expected {last - first} positions")
                    engine.import_kv(slot, first, stretch)
            context.filled[row], context.exact[row] = context.cached[row], 0  # of whatever engine
            if not context.prompt_filled(row):
                continue
            with _named(arrays, f"prompt_logits.{row}") as logits:
                engine.write_logits(slot, logits, kept=True)
            if fresh:
                with _named(arrays, f"logits.{row}") as logits:
                    engine.write_logits(slot, logits)
        context.filled_in = context.turn
        self.sync(context)
        context.stale = context.stale and not fresh

    def environment(self) -> dict[str, Any]:
        return self._environment()


def _pages(length: int) -> Iterator[tuple[int, int, int]]:
    """Numbered stretches of positions: a full one never changes, so that a later snapshot need not hold it again."""
    for page, first in enumerate(range(0, length, PAGE)):
        yield page, first, min(first + PAGE, length)


@contextmanager
def _named(arrays: Arrays, name: str) -> Iterator[Any]:
    """An array of a snapshot; what is wrong with it is said with its name."""
    if name not in arrays:
        raise ValueError(f"array {name!r} is missing")
    try:
        yield arrays[name]
    except ValueError as error:
        raise ValueError(f"array {name!r}: {error}") from error
