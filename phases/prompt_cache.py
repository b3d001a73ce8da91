"""The prompt cache: keys and values of what prompts begin with, so that a prompt that begins alike need not compute it.

It holds whole blocks of tokens, cut where the engine lets a prompt be cut. So what is computed after them is, to the
bit, what it is after a prefill of all, and no record need know what was reused.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpu import Engine, OptionError
from gpu.process import Home

if TYPE_CHECKING:
    from phases.prompt_folder import PromptFolder

Block = npt.NDArray[np.float32]
"""Keys and values of some tokens, as `Engine.export_kv` gives them."""

FEWEST = 64  # tokens of a block: fewer are sooner computed than kept

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class PromptCache:
    """What prompts of one engine begin with, block by block; use it from as many threads as you like.

    A block's name is a digest of its tokens and of the name of the block before it, so prompts that begin alike share
    their blocks. Of blocks that are too many, those that were used longest ago go first, the ends of prompts before
    their beginnings, and what was pinned only when nothing else is left.

    Parameters
    ----------
    engine
        Whose rows are filled, and read.
    limit
        Bytes of memory that blocks may take; 0 keeps none in memory.
    folder
        Where blocks are kept besides, for other processes and later ones.

    Attributes
    ----------
    block : int
        Tokens of a block.
    """

    def __init__(self, engine: Engine, *, limit: int, folder: "PromptFolder | None" = None) -> None:
        self.block = engine.prefill_chunk * -(-FEWEST // engine.prefill_chunk)
        model = engine.model
        self._shape = (model.layers, 2, model.kv_heads, self.block, model.head_dim)
        self._most = limit // (4 * self.block * model.kv_numbers)
        self._engine: Engine | None = engine
        self._folder = folder
        self._blocks: OrderedDict[str, Block] = OrderedDict()  # a block stands before those that lie before it
        self._pinned: set[str] = set()
        self._lock = Lock()
        self._home = Home()

    def fill(self, slot: int, ids: Sequence[int], first: int, last: int, *, adapter: str | None) -> int:
        """Put what is there of a prompt behind the first tokens that a row holds, and count it as held.

        Parameters
        ----------
        ids
            The whole prompt.
        first
            How many of its tokens the row holds, as a prefill leaves them: as many as a prompt may be cut at.
        last
            How many it is to hold at most. One token of the prompt, at least, is left to be fed, for its logits.
        adapter
            What changes keys and values besides the tokens.

        Returns
        -------
        int
            How many it holds now: `first`, or more, and then as many as the prompt may be cut at, or `last`.
        """
        if self._engine is None or self._home.left:
            return first
        chunk = self._engine.prefill_chunk
        reach = last if last < len(ids) else (len(ids) - 1) // chunk * chunk
        if reach // self.block * self.block <= first:  # for most prompts, at once
            return first
        blocks = self._found(self._names(ids, adapter, -(-reach // self.block)))
        end = min(reach, len(blocks) * self.block)
        if end <= first:
            return first
        for number, block in enumerate(blocks):
            begin = number * self.block
            here = slice(max(first - begin, 0), min(end - begin, self.block))
            if here.start < here.stop:
                self._engine.import_kv(slot, begin + here.start, block[:, :, :, here])
        self._engine.kv_cache.commit(slot, end - first)
        return end

    def keep(self, slot: int, ids: Sequence[int], *, adapter: str | None, pin: bool = False) -> None:
        """Keep what a row holds of these tokens, its first ones, as a prefill leaves them; waits for the engine.

        Only whole blocks are kept. With `pin` they stay when others go.
        """
        count = len(ids) // self.block
        if self._engine is None or self._home.left or not count:
            return
        if self._folder is None:
            count = min(count, self._most)
        names = list(self._names(ids, adapter, count))
        with self._lock:
            lacking = [number for number, name in enumerate(names[: self._most]) if name not in self._blocks]
        if self._folder is not None:
            lacking += [number for number, name in enumerate(names) if not self._folder.holds(name)]
        fresh: dict[str, Block] = {}
        if lacking:
            start = min(lacking)
            array = self._engine.export_kv(slot, start * self.block, count * self.block)
            for number in range(start, count):
                begin = (number - start) * self.block
                fresh[names[number]] = np.ascontiguousarray(array[:, :, :, begin : begin + self.block])
        self._hold(names, fresh, pin=pin)
        if self._folder is not None:
            self._folder.write(names, fresh)

    @property
    def size(self) -> int:
        """How many bytes of memory the blocks take."""
        return len(self._blocks) * 4 * int(np.prod(self._shape))

    def clear(self) -> None:
        """Forget what is held in memory."""
        with self._lock:
            self._blocks.clear()
            self._pinned.clear()

    def close(self) -> None:
        """Forget all of it: the engine is about to close. What is asked of it from now on comes to nothing."""
        self._engine = None
        self._blocks, self._pinned = OrderedDict(), set()

    def _found(self, names: Iterator[str]) -> list[Block]:
        """The longest beginning of a prompt that is there."""
        used: list[str] = []
        blocks: list[Block] = []
        read: dict[str, Block] = {}
        for name in names:
            block = self._blocks.get(name)
            if block is None and self._folder is not None:
                block = self._folder.read(name, self._shape)
                if block is not None:
                    read[name] = block
            if block is None:
                break
            used.append(name)
            blocks.append(block)
        self._hold(used, read)
        if self._folder is not None:
            self._folder.touch(used)
        return blocks

    def _hold(self, names: Sequence[str], fresh: dict[str, Block], *, pin: bool = False) -> None:
        """Note that a prompt of these blocks was used, of which some are new."""
        with self._lock:
            self._blocks.update(fresh)
            if pin:
                self._pinned.update(names)
            for name in reversed(names):  # so that nothing goes before what lies behind it
                if name in self._blocks:
                    self._blocks.move_to_end(name)
            while len(self._blocks) > self._most:
                name = next((name for name in self._blocks if name not in self._pinned), next(iter(self._blocks)))
                del self._blocks[name]
                self._pinned.discard(name)

    def _names(self, ids: Sequence[int], adapter: str | None, count: int) -> Iterator[str]:
        """What the first whole blocks of a prompt are called, so many at most."""
        name = sha256(f"{self._folder.bound_to if self._folder else ''}|{adapter or ''}".encode()).hexdigest()
        for number in range(min(count, len(ids) // self.block)):
            tokens = np.asarray(ids[number * self.block : (number + 1) * self.block], "<i4")
            name = sha256(bytes.fromhex(name) + tokens.tobytes()).hexdigest()
            yield name


def byte_count(given: Any, what: str) -> int:
    """Read a number of bytes, as in 1000, "256 MB" or "1.5 GiB".

    Raises
    ------
    OptionError
        If it is none.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    words = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*", given) if isinstance(given, str) else None
    if words is None or words[2].upper() not in _UNITS:
        raise OptionError(f'{what} is {given!r:.80}: expected a number of bytes, such as 0, 1000000 or "256 MB"')
    return int(float(words[1]) * _UNITS[words[2].upper()])
