"""The way of values from the host to the device: through pinned memory, so that nobody waits for the copy."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.cuda.device import Device, Event, Lines

_SLOTS, _SIZE = 32, 256 << 10


class Staging:
    """A ring of pinned slots. A value is copied into a slot and on its way; the caller may change it at once.

    Only who fills the whole ring before the device has emptied its first slot waits for that.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address, self._bytes = device.pinned(_SLOTS * _SIZE)
        self._events: list[Event | None] = [None] * _SLOTS
        self._next = 0

    def write(self, target: Lines, values: npt.NDArray[Any]) -> None:
        """Send the bytes of an array, which are as many as the target has."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(target.height, target.width)
        if target.width > _SIZE:
            for index, line in enumerate(data):
                for first in range(0, target.width, _SIZE):
                    piece = line[first : first + _SIZE]
                    self._send(Lines(target.address + index * target.pitch + first, len(piece)), piece)
            return
        together = max(1, _SIZE // max(1, target.width))
        for first in range(0, target.height, together):
            lines = data[first : first + together]
            self._send(
                Lines(target.address + first * target.pitch, target.width, len(lines), target.pitch), lines.reshape(-1)
            )

    def _send(self, target: Lines, data: npt.NDArray[np.uint8]) -> None:
        if not len(data):
            return
        slot, self._next = self._next, (self._next + 1) % _SLOTS
        event = self._events[slot]
        if event is not None:
            event.sync()
        self._bytes[slot * _SIZE :][: len(data)] = data
        self._device.copy(Lines(self._address + slot * _SIZE, target.width, target.height, target.width), target)
        self._events[slot] = self._device.record()
