"""Whether the CUDA engine can run here, and what is missing if not; imports CUDA only where it is installed."""

from functools import cache
from importlib.util import find_spec

INSTALL = "pip install 'phasewalk[cuda]'"
OLDEST = (8, 0)  # compute capability


@cache
def missing() -> str | None:
    """Say why no CUDA engine can run in this process, or give None."""
    for module in ("cuda", "cuda.core", "cuda.bindings"):
        if find_spec(module) is None:
            return f"cuda-python is not installed: {INSTALL}"
    try:
        from cuda.bindings import driver, nvrtc

        result, *_ = driver.cuInit(0)
    except Exception as error:  # of many kinds: whatever the loader of a library raises
        return f"no NVIDIA driver was found ({type(error).__name__})"
    if result != driver.CUresult.CUDA_SUCCESS:
        return f"the NVIDIA driver does not start ({result.name})"
    _, count = driver.cuDeviceGetCount()
    if not count:
        return "the NVIDIA driver sees no device"
    attribute = driver.CUdevice_attribute
    names = (
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    )
    capability = tuple(driver.cuDeviceGetAttribute(name, 0)[1] for name in names)
    if capability < OLDEST:
        return f"the device has compute capability {'.'.join(map(str, capability))}, the kernels need 8.0"
    _, version = driver.cuDriverGetVersion()
    if version < 13000:
        return (
            f"the NVIDIA driver is for CUDA {version // 1000}.{version % 1000 // 10}, this needs one for 13.0 or later"
        )
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:
        return f"NVRTC, the compiler of kernels, was not found ({error}): {INSTALL}"
    return None
