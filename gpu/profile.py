"""What an engine can measure of itself where the clock of the host does not reach: times on its device."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """A number that is worth to be known by heart, as it is on the machine at hand."""

    name: str
    value: float
    unit: str
    what: str


@dataclass(frozen=True, slots=True)
class StepPart:
    """A part of a decode step, from its launch on.

    Attributes
    ----------
    graph_ns, plain_ns
        From one step to the next while nobody waits: launched as a graph, and kernel by kernel. None if it is not
        launched so.
    host_ns
        What the host needs to launch it, as the engine does.
    """

    name: str
    graph_ns: float | None
    plain_ns: float | None
    host_ns: float
    what: str


@dataclass(frozen=True, slots=True)
class Work:
    """A kernel, or a phase of one, in a pass through the model; times and bytes are those of all its launches.

    Attributes
    ----------
    time_ns
        One launch after the other, with nothing between.
    apart_ns
        Alone on the device: until the last one before it has ended, it does not begin. None if that is not possible.
    bytes
        What it has to read and write at least: everything once. None if that is not known.
    """

    name: str
    launches: int
    time_ns: float
    apart_ns: float | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass through the model by its kernels; `time_ns` is that of all of them in one graph."""

    name: str
    time_ns: float
    works: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What was measured; `read_bandwidth` is in bytes per second, and of the same minute as all the rest."""

    device: str
    rows: int
    context: int
    read_bandwidth: float
    parts: tuple[StepPart, ...]
    passes: tuple[Pass, ...]
    key_numbers: tuple[KeyNumber, ...]
