"""What an engine will need of memory, beside what the machine has: asked before anything large is touched."""

import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path

from gpu.errors import CapacityError, CheckpointError

_CGROUP = Path("/sys/fs/cgroup/memory.max")
Needs = Callable[[int, int], Mapping[str, int]]  # rows, capacity -> bytes by what takes them


def machine_memory() -> int:
    """Count the bytes that this process can have at most: the machine's, or what its container or limits allow."""
    limits = [sys.maxsize]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if _CGROUP.is_file() and (text := _CGROUP.read_text().strip()).isdigit():
        limits.append(int(text))
    if sys.platform != "win32":
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    return min(limits)


def check_weights(needed: int, *, device: int | None = None, quantised: int | None = None) -> None:
    """Raise CheckpointError if the weights alone are more than the machine has, or than is free on the device.

    `quantised`: how many bytes they would take in 8 bits, if the engine can do that.
    """
    memory = machine_memory() if device is None else device
    if needed > memory:
        rounded = (
            "" if quantised is None or quantised > memory else f' or quantize="int8", which takes {size(quantised)}'
        )
        raise CheckpointError(
            f"the weights take {size(needed)} in the engine's memory, {_owner(device)} {size(memory)}: "
            f"choose a smaller model{rounded}"
        )


def check_capacity(rows: int, capacity: int, needs: Needs, *, weights: int, device: int | None = None) -> None:
    """Raise CapacityError if what grows with rows and capacity could never be used in full.

    The system commits memory of the machine as it is used, a device all of it at once, beside the weights.
    """
    most = machine_memory() if device is None else device - weights
    if sum(needs(rows, capacity).values()) > most:
        raise too_large(rows, capacity, needs, weights=weights, device=device)


def too_large(rows: int, capacity: int, needs: Needs, *, weights: int, device: int | None = None) -> CapacityError:
    """Say what was needed, by what, and what would fit."""
    parts, memory = needs(rows, capacity), machine_memory() if device is None else device
    largest = max(parts, key=lambda name: parts[name])

    def fitting(most: int, total: Callable[[int], int]) -> int:
        return bisect_right(range(1, min(most, 2**40) + 1), memory - weights, key=total)

    narrower = fitting(capacity, lambda n: sum(needs(rows, n).values()))
    fewer = fitting(rows, lambda n: sum(needs(n, capacity).values()))
    advice = [f"capacity={narrower}"] * (0 < narrower < capacity) + [f"max_batch={fewer}"] * (0 < fewer < rows)
    return CapacityError(
        f"max_batch={rows} and capacity={capacity} take {size(sum(parts.values()))} of memory, "
        f"{size(parts[largest])} of it for the {largest}; {_owner(device)} {size(memory)}, the weights take "
        f"{size(weights)}: " + (f"{' or '.join(advice)} would fit" if advice else "ask for much less of both")
    )


def _owner(device: int | None) -> str:
    return "this machine has" if device is None else "the device has free"


def size(count: int) -> str:
    """Write a number of bytes as a person reads it."""
    value, units = float(min(count, 2**70)), iter(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while value >= 1024 and (larger := next(units, None)):
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
