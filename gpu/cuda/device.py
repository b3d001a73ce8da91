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


class Module(NamedTuple):
    """Kernels that are compiled together."""

    source: str
    defines: tuple[str, ...]  # macros


class Event(Protocol):
    """A place in the stream."""

    @property
    def is_done(self) -> bool:
        """Whether all work before it is done; raises if the device has failed."""
        ...


class Moment(Event, Protocol):
    """A place in the stream, and when it was reached."""

    def since(self, earlier: Any) -> float:
        """Give the nanoseconds from an earlier moment of the same device; both are done."""
        ...


class Graph(Protocol):
    """Launches that were recorded, and go to the device as one."""

    def launch(self) -> None:
        """Put it into the stream."""
        ...


class Launcher(Protocol):
    """Who launches kernels."""

    @property
    def processors(self) -> int:
        """How many streaming multiprocessors there are."""
        ...

    @property
    def capability(self) -> tuple[int, int]:
        """Which compute capability it has."""
        ...

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *parameters: int, shared: int = 0,
        together: bool = False, behind: bool = False,
    ) -> None:  # fmt: skip
        """Run a kernel; every parameter takes 8 bytes.

        `shared` is the bytes of shared memory of a block that its code does not name, `together` that all blocks must
        be on the device at once, `behind` that what comes before it in the stream may be no kernel of ours.
        """
        ...


class Device(Launcher, Protocol):
    """One device and one stream: copies, launches and graphs take effect in the order of the calls.

    An address is a place in the device's memory, or in pinned memory of the host, which no copy waits for.
    """

    processors: int
    capability: tuple[int, int]  # compute capability
    cache: int  # bytes of the cache between the processors and the memory

    def environment(self) -> dict[str, Any]:
        """Tell what of it can change a bit, as plain JSON values."""
        ...

    @property
    def stream(self) -> int:
        """The handle by which others put work into the stream: within `capture`, into what is recorded."""
        ...

    def enter(self) -> None:
        """Make this thread ready for the other calls."""
        ...

    def memory_free(self) -> int:
        """Count the bytes that can still be allocated."""
        ...

    def allocate(self, size: int) -> int:
        """Reserve device memory, all zero, until `close`; raises MemoryError."""
        ...

    def pinned(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Reserve pinned memory of the host, until `close`: its address and its bytes; raises MemoryError."""
        ...

    def release(self, address: int) -> None:
        """Give memory back, pinned or the device's, that nothing in the stream asks for any more."""
        ...

    def build(self, modules: Sequence[Module], *, compiling: Callable[[], None]) -> None:
        """Compile kernels, having called `compiling`, or take them from the cache, and load them too.

        Of kernels of the same name the one that was built last is launched.
        """
        ...

    def copy(self, source: Lines, target: Lines) -> None:
        """Copy between device memory and device or pinned memory."""
        ...

    def clear(self, target: Lines) -> None:
        """Make device memory all zero."""
        ...

    def record(self) -> Event:
        """Mark this place in the stream."""
        ...

    def moment(self) -> Moment:
        """Mark this place in the stream, and have the device look at its clock there."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record the launches that `work` makes, and what it has others put into `stream`, instead of running them."""
        ...

    def fault(self) -> str | None:
        """Say what broke the device for this process, if anything has."""
        ...

    def close(self) -> None:
        """Give all memory back; nothing is in the stream any more."""
        ...
