"""The ways in which the engine can decode, and which of them a device can run."""

from gpu.errors import DeviceError, OptionError

Capability = tuple[int, int]
_NEEDED: dict[str, Capability] = {"per-op": (8, 0), "persistent": (9, 0)}


def decode_paths(capability: Capability) -> tuple[str, ...]:
    """Name those that a device of this compute capability can run."""
    return tuple(path for path, needed in _NEEDED.items() if capability >= needed)


def choose_path(asked: str | None, capability: Capability) -> tuple[str, str]:
    """Give the way to decode, and why it is this one.

    Raises
    ------
    OptionError
        If there is none of that name.
    DeviceError
        If this device cannot run it.
    """
    if asked is None:
        return "per-op", "the engine's choice"
    if asked not in _NEEDED:
        raise OptionError(f"there is no decode path {asked!r}: expected {' or '.join(_NEEDED)}")
    if asked not in decode_paths(capability):
        raise DeviceError(
            f"decode={asked!r} needs compute capability {_version(_NEEDED[asked])}, this device has "
            f"{_version(capability)}: it decodes {' or '.join(decode_paths(capability))}"
        )
    if asked == "persistent":
        raise DeviceError("decode='persistent' is not there yet: leave it out, or ask for decode='per-op'")
    return asked, "asked for"


def _version(capability: Capability) -> str:
    return ".".join(map(str, capability))
