"""Whether the CUDA engine can run here, and what is missing if not; imports CUDA only where it is installed."""

from importlib.util import find_spec

from gpu.cuda.paths import decode_paths
from gpu.memory import size
from gpu.process import Home

INSTALL = "pip install 'phasewalk[cuda]'"
OLDEST = (8, 0)  # compute capability
OLDEST_DRIVER = (13, 0)


_asked: tuple[Home, str | None] | None = None


def missing() -> str | None:
    """Say why no CUDA engine can run in this process, or give None; starts CUDA, if nobody has."""
    global _asked
    if _asked is None:
        _asked = Home(), _missing()
    home, reason = _asked
    if reason is None and home.left:
        return (
            "this is a child of os.fork, and CUDA was started before that: start workers with "
            'multiprocessing.get_context("spawn")'
        )
    return reason


def _missing() -> str | None:
    for module in ("cuda", "cuda.core", "cuda.bindings"):
        if find_spec(module) is None:
            return f"cuda-python is not installed: {INSTALL}"
    try:
        from cuda.bindings import driver, nvrtc

        result, *_ = driver.cuInit(0)
    except Exception as error:  # of many kinds: whatever the loader of a library raises
        return (
            f"no NVIDIA driver was found ({type(error).__name__}): where there is a GPU, get one at nvidia.com/drivers"
        )
    if result != driver.CUresult.CUDA_SUCCESS:
        return f"the NVIDIA driver does not start ({result.name})"
    _, count = driver.cuDeviceGetCount()
    if not count:
        return "the NVIDIA driver sees no device"
    found = capability()
    if found < OLDEST:
        return f"the device has compute capability {'.'.join(map(str, found))}, the kernels need 8.0"
    if _version() < OLDEST_DRIVER:
        return f"the NVIDIA driver is for CUDA {'.'.join(map(str, _version()))}, this needs one for 13.0 or later"
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:
        return f"NVRTC, the compiler of kernels, was not found ({error}): {INSTALL}"
    return None


def describe() -> dict[str, str]:
    """Tell of the device, if it can be used; to count what is free a context is made, and given back."""
    if missing() is not None:
        return {}
    from cuda.bindings import driver

    _, name = driver.cuDeviceGetName(256, 0)
    result, context = driver.cuDevicePrimaryCtxRetain(0)
    memory = f"no context can be made on it ({result.name})"
    if result == driver.CUresult.CUDA_SUCCESS:
        driver.cuCtxPushCurrent(context)
        result, free, total = driver.cuMemGetInfo()
        memory = f"{size(free)} of {size(total)}"
        driver.cuCtxPopCurrent()
        driver.cuDevicePrimaryCtxRelease(0)
    return {
        "device": name.split(b"\0")[0].decode(),
        "compute capability": ".".join(map(str, capability())),
        "driver": f"for CUDA {'.'.join(map(str, _version()))}",
        "memory free": memory,
        "decode paths": ", ".join(decode_paths(capability())),
    }


def capability() -> tuple[int, int]:
    """Give the compute capability of the first device; there is one, see `missing`."""
    from cuda.bindings import driver

    attribute = driver.CUdevice_attribute
    _, major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0)
    _, minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0)
    return major, minor


def _version() -> tuple[int, int]:
    from cuda.bindings import driver

    _, version = driver.cuDriverGetVersion()
    return version // 1000, version % 1000 // 10
