"""Decode steps, the faster way: one kernel an operation, or one kernel for all of them where that was measured faster.

Both give the same bits, so that either may be taken for any step.
"""

import time

import numpy as np
import numpy.typing as npt

from gpu.cuda.arena import Arena
from gpu.cuda.device import Device
from gpu.cuda.forward import Forward, step_of
from gpu.cuda.graphs import GraphCache
from gpu.cuda.paths import PER_OP, PERSISTENT
from gpu.cuda.persistent import Persistent
from gpu.cuda.shape import SPLIT, Shape
from gpu.cuda.staging import Staging, Window
from gpu.cuda.watchdog import Watchdog
from gpu.errors import DeviceError, SelfCheckError

_STEPS, _ROUNDS = 4, 3  # of a measurement


class Decoding:
    """Launches steps.

    Attributes
    ----------
    why : str
        What speaks for the path that is taken.
    """

    def __init__(self, forward: Forward, persistent: Persistent | None, graphs: GraphCache, why: str) -> None:
        self._forward, self._persistent, self._graphs = forward, persistent, graphs
        # By tokens: the longest rows, in splits, for which the one kernel is taken.
        self._ways = dict.fromkeys(persistent.sizes, 1 << 30) if persistent is not None else {}
        self.why = why

    def launch(self, tokens: int, ways: int) -> None:
        """Take the token that was drawn for each row of the step through the model."""
        self._launch(self.path(tokens, ways), tokens, ways)

    def path(self, tokens: int, ways: int) -> str:
        """Name the way that steps of so many tokens take, in rows of at most so many splits."""
        return PERSISTENT if ways <= self._ways.get(tokens, 0) else PER_OP

    def measure(
        self, device: Device, shape: Shape, arena: Arena, staging: Staging, watchdog: Watchdog, window: Window
    ) -> None:
        """Keep the one kernel only where it is faster: for rows of up to so many splits, as rows get longer.

        And only if it gives the bits of the others, which it does unless something is wrong with it or the device.
        """
        if shape.capacity < _STEPS:
            return

        def seconds(path: str, tokens: int, ways: int) -> float:
            found = []
            for _ in range(_ROUNDS + 1):  # the first one is for the graph to be recorded
                rows, position = range(min(tokens, shape.rows)), max(0, min(ways * SPLIT, shape.capacity) - _STEPS)
                staging.write(arena.lines("step"), step_of(shape, rows, [position] * len(rows)))
                watchdog.wait(device.record(), "load")
                begin = time.perf_counter()
                for _ in range(_STEPS):
                    self._launch(path, tokens, ways)
                watchdog.wait(device.record(), "load")
                found.append(time.perf_counter() - begin)
            return min(found[1:]) / _STEPS

        words = []
        for tokens in sorted(self._ways):
            ways, taken, longest = 1, 0, shape.ways(shape.capacity)
            while ways <= longest:
                try:
                    whole = seconds(PERSISTENT, tokens, ways)
                except DeviceError:
                    raise
                except Exception as error:  # of cuda.core: there are not as many processors for us as there seem to be
                    self._ways = {}
                    self.why = f"one kernel for a whole step cannot be launched here: {error}"
                    return
                of_whole = _logits(shape, arena, window)
                apart = seconds(PER_OP, tokens, ways)
                if not np.array_equal(of_whole, _logits(shape, arena, window), equal_nan=True):
                    self._ways = {}
                    self.why = "one kernel for a whole step gave other bits on this device: please tell us"
                    return
                if ways == 1:
                    words.append(f"{whole * 1e3:.3f} ms a step against {apart * 1e3:.3f} at batch {tokens}")
                if whole >= apart:
                    break
                taken, ways = ways, ways * 2
            self._ways[tokens] = taken
        if words:
            self.why = "measured: " + ", ".join(words)

    def compare(self, shape: Shape, arena: Arena, staging: Staging, window: Window) -> None:
        """See that the one kernel, which was asked for, gives the bits of the others, for the fewest rows and the most.

        Raises
        ------
        SelfCheckError
            If it does not.
        """
        for tokens in {min(self._ways), max(self._ways)}:
            rows, found = range(min(tokens, shape.rows)), []
            for path in (PERSISTENT, PER_OP):
                staging.write(arena.lines("step"), step_of(shape, rows, [0] * len(rows)))
                self._launch(path, tokens, 1)
                found.append(_logits(shape, arena, window))
            of_whole, apart = found
            if not np.array_equal(of_whole, apart, equal_nan=True):
                raise SelfCheckError(
                    f"decode={PERSISTENT!r} gives other bits than {PER_OP!r} on this device: leave it out, and tell us"
                )

    def _launch(self, path: str, tokens: int, ways: int) -> None:
        whole = self._persistent
        if path == PERSISTENT and whole is not None:
            self._graphs.run((PERSISTENT, tokens), lambda: whole.decode(tokens))
        else:
            self._graphs.run((PER_OP, tokens, ways), lambda: self._forward.decode(tokens, ways))


def _logits(shape: Shape, arena: Arena, window: Window) -> npt.NDArray[np.float32]:
    """Wait for the logits of all rows."""
    found = np.empty((shape.rows, shape.model.vocab), np.float32)
    window.read(arena.lines("logits"), found, "load")
    return found
