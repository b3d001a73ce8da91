"""The ways in which the engine can decode, and which of them a device can run."""

from gpu.errors import DeviceError, OptionError

Capability = tuple[int, int]
PER_OP, PERSISTENT = "per-op", "persistent"
_NEEDED: dict[str, Capability] = {PER_OP: (8, 0), PERSISTENT: (9, 0)}


def decode_paths(capability: Capability) -> tuple[str, ...]:
    """Name those that a device of this compute capability can run."""
    return tuple(path for path in _NEEDED if no_device(path, capability) is None)


def check_path(asked: str | None, missing: str | None) -> None:
    """Raise if this way to decode was asked for, and there is none such.

    Parameters
    ----------
    asked : str, optional
        The name of a way.
    missing : str, optional
        Why there is no kernel for a whole step here, if there is none.

    Raises
    ------
    OptionError
        If there is none of that name.
    DeviceError
        If it cannot be taken here.
    """
    if asked is not None and asked not in _NEEDED:
        raise OptionError(f"there is no decode path {asked!r}: expected {' or '.join(_NEEDED)}")
    if asked == PERSISTENT and missing is not None:
        raise DeviceError(f"decode={asked!r} cannot be had here: {missing}; leave it out, or ask for {PER_OP!r}")


def no_device(path: str, capability: Capability) -> str | None:
    """Say what is wrong with a device for this way to decode, or give None."""
    needed = _NEEDED[path]
    # The kernel of a whole step is made of instructions that only 9.0 has; the others run on all that came later.
    if capability < needed or (path == PERSISTENT and capability != needed):
        return f"it needs compute capability {_version(needed)}, this device has {_version(capability)}"
    return None


def _version(capability: Capability) -> str:
    return ".".join(map(str, capability))
