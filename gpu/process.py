"""The process that an engine belongs to: a child of os.fork has its memory, but not its threads, nor its locks."""

import os

from gpu.errors import ForkedError

_forks = 0  # that lie between the first process and this one


def _count() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


class Home:
    """The process in which it was made. Whoever takes a lock asks first: in a child it may be held for ever."""

    __slots__ = ("_forks",)

    def __init__(self) -> None:
        self._forks = _forks

    @property
    def left(self) -> bool:
        """Whether this process is a child of the one in which it was made."""
        return self._forks != _forks

    def check(self) -> None:
        """Raise ForkedError in a child."""
        if self._forks != _forks:
            raise ForkedError(
                "this engine was loaded before os.fork and belongs to the parent process: load it in the child, or "
                'start workers with multiprocessing.get_context("spawn")'
            )
