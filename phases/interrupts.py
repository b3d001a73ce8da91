"""Ctrl-C as long as something else is to become of it than the end of the program."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_heeded(busy: Callable[[], bool], rest: Callable[[], None]) -> Iterator[None]:
    """While it lasts, Ctrl-C calls `rest` where there is something to end, and is a KeyboardInterrupt where not.

    Outside the main thread, which alone hears of it, nothing changes.
    """

    def heed(number: int, frame: object) -> None:
        if not busy():
            raise KeyboardInterrupt
        rest()

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, heed)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
