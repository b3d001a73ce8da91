"""Who may move a run: one thread at a time; a second one is refused at once, and no interrupt leaves the run held."""

import os
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import TypeVar

from statemachine.errors import IllegalMove

Result = TypeVar("Result")

_forks = 0  # how often the process was forked on the way to this one


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Busy(IllegalMove):
    """The run is being moved, by another thread or from within itself."""


class _Hold:
    """One move's hold on a run. Both locks are released by the interpreter's own `with`: nothing can interrupt that."""

    __slots__ = ("claim", "over")

    def __init__(self) -> None:
        self.claim, self.over = Lock(), Lock()  # refuses other moves; wakes who waits for the end of this one


class Driver:
    """Lets one thread at a time move a run."""

    __slots__ = ("_forks", "_hold", "_mutex")

    def __init__(self) -> None:
        self._hold = _Hold()  # the last one; it holds as long as its claim is locked
        self._mutex = Lock()
        self._forks = _forks

    @property
    def held(self) -> bool:
        """Whether some thread moves the run."""
        return self._hold.claim.locked()

    def hold(self, move: str, work: Callable[[], Result]) -> Result:
        """Do the work while nobody else may move the run.

        Parameters
        ----------
        move
            How errors call it: "step run 17".

        Raises
        ------
        Busy
            When the run is being moved already.
        IllegalMove
            When this process was forked while it was.
        """
        if self._forks != _forks:
            self.check(move)
        mine = _Hold()
        with mine.over, mine.claim:
            with self._mutex:
                if self._hold.claim.locked():
                    raise Busy(f"cannot {move}: it is being driven by another thread or from within itself")
                self._hold = mine
            return work()

    def undisturbed(self, read: Callable[[], Result]) -> Result | None:
        """What is read of a run that nobody moves meanwhile; None if somebody does: it may be half changed then."""
        hold = self._hold
        if hold.claim.locked():
            return None
        try:
            found = read()
        except Exception:
            if self._hold is hold:
                raise
            return None
        return found if self._hold is hold else None

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nobody moves the run, at most so many seconds; whether it rests."""
        until = None if timeout is None else monotonic() + timeout
        while (hold := self._hold).claim.locked():
            self.check("wait for a run")
            left = 0.1 if until is None else min(0.1, until - monotonic())
            if left <= 0:
                return False
            if hold.over.acquire(timeout=left):
                hold.over.release()
        return True

    def check(self, move: str) -> None:
        """Raise IllegalMove if this process was forked from one in which a thread was moving the run."""
        if self._forks == _forks:
            return
        if self._hold.claim.locked():
            raise IllegalMove(
                f"cannot {move}: this process was forked while a thread drove it, and that thread is not here; "
                f"start workers by spawn (multiprocessing.get_context('spawn')) and give each a run of its own"
            )
        self._mutex, self._forks = Lock(), _forks
