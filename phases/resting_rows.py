"""The prompt cache of a device: what rows hold that have been given back, for as long as nobody else has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING

from gpu.process import Home

if TYPE_CHECKING:
    from gpu import Engine


@dataclass(slots=True)
class Rest:
    """What a row held when its run ended: as a prefill of these tokens leaves it."""

    ids: tuple[int, ...]
    adapter: str | None
    changes: int  # of the row, by its KV cache's count: any more, and it holds something else

    def common(self, ids: Sequence[int], adapter: str | None) -> int:
        """How many tokens of a prompt it begins with."""
        alike = zip(self.ids, ids, strict=False) if adapter == self.adapter else ()
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], alike))


class RestingRows:
    """Prompts that begin like what a free row still holds have that copied on the device, or take the row over.

    It takes no memory, and nothing leaves the device. Rows are handed out in the order in which they were given back,
    so that each rests as long as can be. A row is believed while its KV cache counts no change of it; the one that is
    copied from is held meanwhile. Use it from as many threads as you like; see `phases.prompt_cache.PromptCache` for
    what the methods mean.

    Attributes
    ----------
    block : int
        Tokens that are kept at least.
    """

    size = 0  # bytes

    def __init__(self, engine: "Engine") -> None:
        self.block = engine.prefill_chunk
        self._engine: Engine | None = engine
        self._rests: dict[int, Rest] = {}  # by the row, until a run has it
        self._taken: dict[int, Rest] = {}  # by the row that a run took over, while it has written nothing itself
        self._lock = Lock()
        self._home = Home()
        engine.kv_cache.in_turns = True

    def fill(self, slot: int, ids: Sequence[int], first: int, last: int, *, adapter: str | None = None) -> int:
        """Have a row hold what is there of a prompt behind its first tokens; how many it holds then."""
        if self._engine is None or self._home.left:
            return first
        cache, chunk = self._engine.kv_cache, self.block
        reach = last if last < len(ids) else (len(ids) - 1) // chunk * chunk
        with self._lock:
            if first == 0:
                self._take_over(slot)
            own = self._taken.get(slot)
            if own is not None and own.changes != cache.changes(slot):
                own = self._taken.pop(slot) and None
            count = own.common(ids, adapter) if own else 0
            row, rest = slot, own
            for other, resting in self._rests.items():
                if resting.changes == cache.changes(other) and (alike := resting.common(ids, adapter)) > count:
                    row, rest, count = other, resting, alike
            end = reach if count >= reach else count // chunk * chunk
            if rest is None or end <= first:
                return first
            if row == slot:
                cache.commit(slot, end - first)
                rest.changes = cache.changes(slot)
                return end
            if not cache.take(row):
                return first
            try:
                rest.changes += 1
                if rest.changes != cache.changes(row):  # somebody had it in between
                    return first
                self._taken.pop(slot, None)
                self._engine.copy_row(row, slot, length=end)
            finally:
                cache.release([row])
            return end

    def keep(self, slot: int, ids: Sequence[int], *, adapter: str | None = None, pin: bool = False) -> None:
        """Note what a row holds whose run ends; `pin` changes nothing, as no row is kept from those who need one."""
        if self._engine is None or self._home.left or len(ids) < self.block:
            return
        with self._lock:
            self._taken.pop(slot, None)
            self._rests[slot] = Rest(tuple(ids), adapter, self._engine.kv_cache.changes(slot))

    def clear(self) -> None:
        """Believe no row any more."""
        with self._lock:
            self._rests.clear()
            self._taken.clear()

    def close(self) -> None:
        """Forget the engine, which is about to close. What is asked from now on comes to nothing."""
        self._engine = None

    def _take_over(self, slot: int) -> None:
        """Let a run use what its own row held before, if it has been acquired since, and nothing else."""
        assert self._engine is not None
        self._taken.pop(slot, None)
        rest = self._rests.pop(slot, None)
        if rest is not None and rest.changes + 1 == self._engine.kv_cache.changes(slot):
            rest.changes += 1
            self._taken[slot] = rest
