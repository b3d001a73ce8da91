"""Emulated devices on which something goes wrong when a test says so: they hang, break, are slow, or Ctrl-C comes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from emulated_device import EmulatedDevice

from gpu.cuda.device import Event, Graph, Lines


class _Event:
    def __init__(self, device: "UnreliableDevice") -> None:
        self._device = device
        self._late = device.hangs or not device.open.is_set()

    @property
    def is_done(self) -> bool:
        self._device.check()
        if self._late and not self._device.hangs and self._device.open.is_set():
            self._late = False
        if self._late:
            self._device.asked.set()
        return not self._late


class UnreliableDevice(EmulatedDevice):
    """Does as it should until a kernel of the name `hangs_at` or `breaks_at` is to run; then as a GPU does.

    Nothing behind a kernel that hangs is done, and every call after one that broke raises. While `open` is not set,
    events that are recorded are not done; `asked` tells that somebody has waited for one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hangs_at = self.breaks_at = ""
        self.hangs = self.broken = False
        self.open, self.asked = threading.Event(), threading.Event()
        self.open.set()

    def check(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED")  # as cuda.core has it: no error of ours

    def fault(self) -> str | None:
        return "unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED)" if self.broken else None

    def launch(self, *call: Any, **how: Any) -> None:
        self.check()
        super().launch(*call, **how)

    def _run(self, kernel: str, *how: Any) -> None:
        self.check()
        self.hangs |= kernel == self.hangs_at
        if kernel == self.breaks_at:
            self.broken = True
        elif not self.hangs:
            super()._run(kernel, *how)

    def copy(self, source: Lines, target: Lines) -> None:
        self.check()
        if not self.hangs:
            super().copy(source, target)

    def record(self) -> Event:
        self.check()
        return _Event(self)

    def close(self) -> None:
        assert not self.hangs, "to free memory waits for ever"
        self.check()
        super().close()


class InterruptedDevice(EmulatedDevice):
    """Raises KeyboardInterrupt at the n-th call while it is `interrupting`, before or after doing what is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._left = -1
        self._after = False

    @contextmanager
    def interrupting(self, at: int, *, after: bool) -> Iterator[None]:
        self._left, self._after = at, after
        try:
            yield
        finally:
            self._left = -1

    def _passing(self, act: Callable[[], Any]) -> Any:
        self._left -= 1
        now = self._left == -1
        if now and not self._after:
            raise KeyboardInterrupt
        result = act()
        if now:
            raise KeyboardInterrupt
        return result

    def launch(self, *call: Any, **how: Any) -> None:
        self._passing(lambda: super(InterruptedDevice, self).launch(*call, **how))

    def copy(self, source: Lines, target: Lines) -> None:
        self._passing(lambda: super(InterruptedDevice, self).copy(source, target))

    def clear(self, target: Lines) -> None:
        self._passing(lambda: super(InterruptedDevice, self).clear(target))

    def record(self) -> Event:
        return _InterruptedEvent(self, self._passing(super().record))

    def capture(self, work: Callable[[], None]) -> Graph:
        graph = super().capture(work)
        return _InterruptedGraph(self, graph)


class _InterruptedEvent:
    def __init__(self, device: InterruptedDevice, event: Event) -> None:
        self._device, self._event = device, event

    @property
    def is_done(self) -> bool:
        return bool(self._device._passing(lambda: self._event.is_done))


class _InterruptedGraph:
    def __init__(self, device: InterruptedDevice, graph: Graph) -> None:
        self._device, self._graph = device, graph

    def launch(self) -> None:
        self._device._passing(self._graph.launch)
