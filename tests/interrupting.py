"""Interrupts a piece of work at every place at which Python could: at each call and each line of the given files."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import statemachine

EXECUTION = Path(statemachine.__file__).parent / "execution"


class Interrupter:
    """Raises KeyboardInterrupt at the n-th event, and again at each of the `more` events after it.

    Events are the calls of functions in `statemachine.execution`, and the lines of their bodies. Of `driver.py` only
    the calls count: a `with` over a lock is entered and left by the interpreter itself, which looks for signals when a
    function begins or has been called, but not between the parts of a `with`, where a tracing function would be called.
    """

    def __init__(self, at: int, more: int = 0) -> None:
        self.left, self.more, self.fired = at, more, False

    def __enter__(self) -> "Interrupter":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        path = Path(frame.f_code.co_filename)
        if path.parent != EXECUTION or event not in ("call", "line") or frame.f_code.co_name == "<genexpr>":
            return None
        if self.left == 0:
            self.fired = True
            if self.more == 0:
                sys.settrace(None)
                self.left = -1
            else:
                self.more -= 1
            raise KeyboardInterrupt
        if self.left > 0:
            self.left -= 1
        return None if path.name == "driver.py" else self._trace
