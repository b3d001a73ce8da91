"""Who may move a run: one thread at a time; a second one is refused at once, and no interrupt leaves the run held."""

import os
from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import Any, TypeVar

from statemachine.errors import IllegalMove

Result = TypeVar("Result")

HOLDER = "holder"  # of a driver: the key of the one entry
ASK_AGAIN = 0.1  # seconds, for who waits while an interrupt kept the holder from waking anybody

_forks = 0  # how often the process was forked on the way to this one


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class Busy(IllegalMove):
    """The run is being moved, by another thread or from within itself."""


class Driver:
    """Lets one thread at a time move a run.

    Parameters
    ----------
    driven
        How errors call the run: "run 17".
    """

    __slots__ = ("_driven", "_forks", "_hold", "_last", "_waiting")

    def __init__(self, driven: str) -> None:
        self._driven = driven
        self._hold: dict[str, object] = {}  # who moves it now: one entry, or none
        self._last: object = None  # who moved it last
        self._waiting: list[Event] = []
        self._forks = _forks

    @property
    def held(self) -> bool:
        """Whether some thread moves the run."""
        return HOLDER in self._hold

    def hold(self, verb: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do the work while nobody else may move the run.

        Parameters
        ----------
        verb
            How errors call what is done to the run: "step".

        Raises
        ------
        Busy
            When the run is being moved already.
        IllegalMove
            When this process was forked while it was.
        """
        if self._forks != _forks:
            self.check(verb)
        hold, mine = self._hold, object()
        try:
            if hold.setdefault(HOLDER, mine) is not mine:
                raise Busy(f"cannot {verb} {self._driven}: it is being driven by another thread or from within itself")
            self._last = mine
            return work(*arguments)
        finally:
            # Python looks for signals when a function begins or has been called: between these two, it does not.
            if hold == {HOLDER: mine}:
                del hold[HOLDER]
                if self._waiting:
                    for over in [*self._waiting]:
                        over.set()

    def undisturbed(self, read: Callable[[], Result]) -> Result | None:
        """What is read of a run that nobody moves meanwhile; None if somebody does: it may be half changed then."""
        last = self._last
        if self.held:
            return None
        try:
            found = read()
        except Exception:
            if self._last is last:
                raise
            return None
        return found if self._last is last else None

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nobody moves the run, at most so many seconds; whether it rests."""
        if not self.held:
            return True
        until, over = None if timeout is None else monotonic() + timeout, Event()
        self._waiting.append(over)
        try:
            while self.held:
                self.check("wait for")
                left = ASK_AGAIN if until is None else min(ASK_AGAIN, until - monotonic())
                if left <= 0:
                    return False
                if over.wait(left):
                    return True
        finally:
            self._waiting.remove(over)
        return True

    def check(self, verb: str) -> None:
        """Raise IllegalMove if this process was forked from one in which a thread was moving the run."""
        if self._forks == _forks:
            return
        if self.held:
            raise IllegalMove(
                f"cannot {verb} {self._driven}: this process was forked while a thread drove it, and that thread is "
                f"not here; start workers by spawn (multiprocessing.get_context('spawn')) and give each a run of its "
                f"own"
            )
        self._forks = _forks
