"""What is in a linear KV cache: one append-only stretch of positions a row, and the count of those that are used."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu.errors import CapacityError, NoFreeRows
from gpu.process import Home


@dataclass(slots=True)
class LinearKVCache:
    """The books of a cache, the same for every engine; the keys and values themselves are the engine's own.

    Row r holds the tokens at absolute positions 0 to `length(r)` - 1; what lies behind counts for nothing. Memory is
    committed by the system as positions are first written, so a generous capacity costs nothing until it is used.
    An asynchronous engine commits as it launches work, so its books tell what will be there when that is done.

    Invariant: `0 <= length(row) <= capacity`, and `length(row) == 0` for every free row.

    Attributes
    ----------
    in_turns : bool
        Hand out the row that has been free for longest, not the lowest one: what it held is there for longer.
    """

    rows: int
    capacity: int  # positions of a row
    bytes_per_position: int  # keys and values of one position of one row, all layers together
    in_turns: bool = False
    _changes: list[int] = field(init=False, repr=False)  # [rows]
    _lengths: list[int] = field(init=False)  # [rows], written by commit, truncate and release only
    _free: list[int] = field(init=False, repr=False)
    # Reentrant, as a forgotten run may be collected, and give its rows back, while this thread asks for some.
    _lock: threading.RLock = field(init=False, repr=False)
    _home: Home = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._lengths, self._changes = [0] * self.rows, [0] * self.rows
        self._free = list(range(self.rows))[::-1]  # the lowest row is handed out first: it is the last of the list
        self._lock, self._home = threading.RLock(), Home()

    @property
    def free(self) -> int:
        """How many rows are free now."""
        return len(self._free)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens each row holds."""
        return tuple(self._lengths)

    def length(self, row: int) -> int:
        """How many tokens this row holds."""
        return self._lengths[row]

    def acquire(self, count: int) -> tuple[int, ...]:
        """Take `count` free rows, all or none.

        Raises
        ------
        NoFreeRows
            If fewer are free.
        ValueError
            If `count` is not positive.
        ForkedError
            In a child of the process that loaded the engine.
        """
        self._home.check()
        if count < 1:
            raise ValueError(f"{count} rows were asked for, expected at least 1")
        with self._lock:
            if count > len(self._free):
                raise NoFreeRows(
                    f"{count} rows were asked for, {len(self._free)} of {self.rows} are free: finish, cancel or close "
                    f"a run, split the batch, or load the engine with a larger max_batch"
                )
            rows = tuple(sorted(self._free.pop() for _ in range(count)))
            for row in rows:
                self._changes[row] += 1
            return rows

    def take(self, row: int) -> bool:
        """Acquire this very row, if it is free; whether it was."""
        self._home.check()
        with self._lock:
            if row not in self._free:
                return False
            self._free.remove(row)
            self._changes[row] += 1
            return True

    def changes(self, row: int) -> int:
        """How often a row was acquired, or something was written to it: the same count means that it holds the same.

        An engine counts as it launches work; one that fails in between says nothing of what the row holds.
        """
        return self._changes[row]

    def change(self, row: int) -> None:
        """Count a change of what a row holds that no commit tells of."""
        self._changes[row] += 1

    def release(self, rows: Sequence[int]) -> None:
        """Give rows back; their lengths become 0. In a child of os.fork nothing happens: they are the parent's.

        Raises
        ------
        ValueError
            If a row is free already or named twice; no row was released then.
        """
        if self._home.left:
            return
        with self._lock:
            for row in rows:
                self._check_row(row)
            refused = sorted(row for row in set(rows) if row in self._free or list(rows).count(row) > 1)
            if refused:
                raise ValueError(f"rows {refused} are free already or named twice: release each acquired row once")
            for row in rows:
                self._lengths[row] = 0
                self._free.insert(0, row)  # the last of the list is handed out first
            if not self.in_turns:
                self._free.sort(reverse=True)

    def check_room(self, row: int, count: int) -> None:
        """Raise CapacityError unless `count` more tokens fit into this row."""
        length = self._lengths[row]
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
        self._lengths[row] += count
        self._changes[row] += count > 0

    def truncate(self, row: int, length: int) -> None:
        """Go back to the first `length` tokens of this row; nothing is copied or cleared.

        Raises
        ------
        ValueError
            If the row holds fewer.
        """
        if not 0 <= length <= self._lengths[row]:
            raise ValueError(f"row {row} holds {self._lengths[row]} tokens, it cannot be truncated to {length}")
        self._lengths[row] = length

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.rows:
            raise ValueError(f"there is no row {row}: the cache has rows 0 to {self.rows - 1}")
