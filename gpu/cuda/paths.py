"""The ways in which the engine can decode, and which of them a device can run."""

from gpu.errors import DeviceError, OptionError

_NAMES = ("per-op", "persistent")
_PERSISTENT = (9, 0)  # compute capability, of which no later one has all


def decode_paths(capability: tuple[int, int]) -> tuple[str, ...]:
    """Name those that a device of this compute capability can run."""
    return _NAMES if capability == _PERSISTENT else _NAMES[:1]


def choose_path(asked: str | None, no_persistent: str | None) -> tuple[str, str]:
    """Give the way to decode, and why it is this one; `no_persistent` says why there is no other, if there is none.

    Raises
    ------
    OptionError
        If there is none of that name.
    DeviceError
        If it cannot run this model on this device.
    """
    if asked is None:
        return ("per-op", no_persistent) if no_persistent else ("persistent", "the engine's choice")
    if asked not in _NAMES:
        raise OptionError(f"there is no decode path {asked!r}: expected {' or '.join(_NAMES)}")
    if asked == "persistent" and no_persistent:
        raise DeviceError(f"decode='persistent' cannot be had, {no_persistent}: leave it out, or ask for 'per-op'")
    return asked, "asked for"
