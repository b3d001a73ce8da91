"""What the engine asks of a device: memory, copies in the order of one stream, kernels, and graphs of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Lines(NamedTuple):
    """Pieces of memory of the same length, at equal distances: one piece is `height` 1."""

    address: int
    width: int  # bytes of a piece
    height: int = 1
    pitch: int = 0  # bytes from the start of one to the start of the next


class Event(Protocol):
    """A place in the stream."""

    def sync(self) -> None:
        """Wait until all work before it is done."""
        ...


class Graph(Protocol):
    """Launches that were recorded, and go to the device as one."""

    def launch(self) -> None:
        """Put it into the stream."""
        ...


class Device(Protocol):
    """One device and one stream: copies, launches and graphs take effect in the order of the calls.

    An address is a place in the device's memory, or in pinned memory of the host, which no copy waits for.
    """

    processors: int  # streaming multiprocessors
    capability: tuple[int, int]  # compute capability

    def environment(self) -> dict[str, Any]:
        """Tell what of it can change a bit, as plain JSON values."""
        ...

    def enter(self) -> None:
        """Make this thread ready for the other calls."""
        ...

    def memory_free(self) -> int:
        """Count the bytes that can still be allocated."""
        ...

    def allocate(self, size: int) -> int:
        """Reserve device memory, all zero, until `close`."""
        ...

    def pinned(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Reserve pinned memory of the host, until `close`: its address and its bytes."""
        ...

    def build(self, source: str, defines: Sequence[str]) -> None:
        """Compile kernels, or take them from the cache, and load them."""
        ...

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        *parameters: int,
        shared: int = 0,
        cluster: int = 1,
    ) -> None:
        """Run a kernel, with so many bytes of shared memory, blocks in clusters; every parameter takes 8 bytes."""
        ...

    def copy(self, source: Lines, target: Lines) -> None:
        """Copy between device memory and device or pinned memory."""
        ...

    def read(self, source: Lines, target: npt.NDArray[Any]) -> None:
        """Wait for all that is in the stream, and copy device memory into a contiguous array."""
        ...

    def record(self) -> Event:
        """Mark this place in the stream."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record the launches that `work` makes instead of running them."""
        ...

    def close(self) -> None:
        """Wait for the stream, and give all memory back."""
        ...
