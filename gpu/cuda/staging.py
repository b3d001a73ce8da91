"""The way of values between host and device: through pinned memory, so that no copy makes anybody wait."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.cuda.device import Device, Event, Lines
from gpu.cuda.watchdog import Watchdog

Bytes = npt.NDArray[np.uint8]
_SLOTS, _SIZE = 32, 256 << 10
_WINDOW = 4 << 20


class Staging:
    """A ring of pinned slots. A value is copied into a slot and on its way; the caller may change it at once.

    Only who fills the whole ring before the device has emptied its first slot waits for that.
    """

    def __init__(self, device: Device, watchdog: Watchdog) -> None:
        self._device, self._watchdog = device, watchdog
        self._address, self._bytes = device.pinned(_SLOTS * _SIZE)
        self._events: list[Event | None] = [None] * _SLOTS
        self._next = 0

    def write(self, target: Lines, values: npt.NDArray[Any]) -> None:
        """Send the bytes of an array, which are as many as the target has."""
        for piece, data in _pieces(target, np.ascontiguousarray(values), _SIZE):
            slot, self._next = self._next, (self._next + 1) % _SLOTS
            event = self._events[slot]
            if event is not None:
                self._watchdog.wait(event, "a write")
            self._bytes[slot * _SIZE :][: data.size] = data.reshape(-1)
            self._device.copy(Lines(self._address + slot * _SIZE, piece.width, piece.height, piece.width), piece)
            self._events[slot] = self._device.record()


class Window:
    """A pinned window for what is read: one reader at a time looks through it, while others launch.

    Whoever takes `turn` knows that nobody does.
    """

    def __init__(
        self, device: Device, watchdog: Watchdog, launching: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.turn = threading.RLock()
        self._device, self._watchdog, self._launching = device, watchdog, launching
        self._address, self._bytes = device.pinned(_WINDOW)

    def read(self, source: Lines, target: npt.NDArray[Any], call: str) -> None:
        """Wait for device memory as the work launched so far leaves it, and copy it into a contiguous array.

        More than the window holds comes in pieces, each as it is when its turn has come.
        """
        with self.turn:
            for piece, data in _pieces(source, target, _WINDOW):
                with self._launching():
                    self._device.copy(piece, Lines(self._address, piece.width, piece.height, piece.width))
                    event = self._device.record()
                self._watchdog.wait(event, call)
                data.reshape(-1)[:] = self._bytes[: data.size]


def _pieces(lines: Lines, array: npt.NDArray[Any], most: int) -> Iterator[tuple[Lines, Bytes]]:
    """Cut memory of the device, and the array that is its like, into pieces of at most so many bytes."""
    data = array.reshape(-1).view(np.uint8).reshape(lines.height, lines.width)
    if not data.size:
        return
    if lines.width > most:
        for index, line in enumerate(data):
            for first in range(0, lines.width, most):
                part = line[first : first + most]
                yield Lines(lines.address + index * lines.pitch + first, len(part)), part
        return
    together = max(1, most // lines.width)
    for first in range(0, lines.height, together):
        part = data[first : first + together]
        yield Lines(lines.address + first * lines.pitch, lines.width, len(part), lines.pitch), part
