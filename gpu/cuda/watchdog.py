"""The one place that waits for the device: not for ever, and with words for what happened if it does not answer."""

import ctypes
import os
import time
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from gpu.cuda.device import Device, Event
from gpu.cuda.paths import PER_OP
from gpu.errors import DeviceError

TIMEOUT = "PHASEWALK_DEVICE_TIMEOUT"  # seconds, for whoever gives no other number
_DEFAULT = 30.0
_SPIN = 0.01  # seconds: a token takes less, and none of it may be lost to the scheduler of the system
_PART = 100  # a longer wait looks again after so small a part of itself


class Watchdog:
    """Waits for events, and remembers that the device has failed: whoever asks it for anything then is told why.

    Parameters
    ----------
    device : Device
        Who is waited for.
    seconds : float, optional
        After so long without an answer it has failed; `PHASEWALK_DEVICE_TIMEOUT`, or 30, if not given. What can be
        under way at once, the prompts in the ring of `Staging` above all, takes a small part of that.

    Attributes
    ----------
    path : str
        How it decodes at the moment, for the message.
    owned : list
        What Python must never free once the device has failed.
    last_words : uint32 [3] in pinned memory, optional
        Where a kernel that gives up leaves a code other than 0, its block and its thread before it traps.
    """

    def __init__(self, device: Device, seconds: float | None = None) -> None:
        self.last_words: npt.NDArray[np.uint32] | None = None
        self.failure: str | None = None
        self.path = PER_OP
        self._device = device
        self._seconds = _seconds() if seconds is None else seconds
        self.owned: list[object] = [device]
        self._work: tuple[str, Sequence[int]] = "load", ()  # what was launched last

    def launches(self, work: str, rows: Sequence[int]) -> None:
        """Take note of what the device is given to do."""
        self._work = work, rows

    def check(self) -> None:
        """Raise DeviceError if the device has failed before."""
        if self.failure is not None:
            raise DeviceError(self.failure)

    def wait(self, event: Event, call: str, rows: Sequence[int] = ()) -> None:
        """Wait until all work before the event is done; raise DeviceError if that takes too long, or fails."""
        began = time.monotonic()
        try:
            while not event.is_done:
                self.check()
                waited = time.monotonic() - began
                if waited > self._seconds:
                    self._fail(
                        f"{_named(call, rows)} has waited {self._seconds:g} s: {self._launched()} or what was launched "
                        f"before it is still running on the device{self._words()}; start another process, or allow it "
                        f"more with {TIMEOUT}"
                    )
                if waited > _SPIN:
                    time.sleep(waited / _PART)
        except Exception as error:
            self.examine(error)
            raise

    def examine(self, error: Exception) -> None:
        """Find out whether an error means that the device has failed, and raise DeviceError if so."""
        if self.failure is None and (fault := self._device.fault()) is not None:
            try:
                self._fail(
                    f"{fault}, in {self._launched()} or before it{self._words()}; this process cannot use the device "
                    f"any more: start another"
                )
            except DeviceError as failed:
                raise failed from error

    def _fail(self, what: str) -> NoReturn:
        self.failure = f"the engine failed: {what}"
        # To unload a kernel waits for the one that hangs, also when Python frees what is left as the process ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.owned))
        raise DeviceError(self.failure)

    def _launched(self) -> str:
        return f"{_named(*self._work)} ({self.path})"

    def _words(self) -> str:
        if self.last_words is None or not self.last_words[0]:
            return ""
        code, block, thread = self.last_words.tolist()
        return f"; its last words: code {code}, block {block}, thread {thread}"


def _named(call: str, rows: Sequence[int]) -> str:
    return f"{call} of row{'s' * (len(rows) > 1)} {', '.join(map(str, rows))}" if rows else call


def _seconds() -> float:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else _DEFAULT
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{TIMEOUT} is {text!r}, expected seconds, more than 0")
    return seconds
