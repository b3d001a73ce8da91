"""Which flavour of TensorRT is installed, and what to install if none; imports neither."""

from importlib.util import find_spec

from gpu.cuda.available import capability
from gpu.cuda.available import missing as no_cuda

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # names of modules; the first one that is there is used
INSTALL = "pip install 'phasewalk[tensorrt-rtx]' (GeForce and RTX GPUs) or 'phasewalk[tensorrt]' (any NVIDIA GPU)"
_NOT_FOR_RTX = ("sm90", "sm100", "sm103")  # GPUs of data centres


def flavour() -> str | None:
    """Give the name of the flavour's module, or None."""
    return next((name for name in FLAVOURS if find_spec(name) is not None), None)


def missing() -> str | None:
    """Say why no plan can be built in this process, or give None."""
    found = flavour()
    if found is None:
        return f"TensorRT is not installed: {INSTALL}"
    if find_spec("onnx") is None:
        return f"onnx is not installed: pip install 'phasewalk[{found.replace('_', '-')}]'"
    return None


def device_class(compute_capability: tuple[int, int]) -> str:
    """Name a class of devices as plans do: `sm89` is compute capability 8.9."""
    return f"sm{compute_capability[0]}{compute_capability[1]}"


def missing_to_run() -> str | None:
    """Say why no plan can be run in this process, or give None; starts CUDA, if nobody has."""
    if (reason := missing() or no_cuda()) is not None:
        return reason
    return not_for(str(flavour()), device_class(capability()))


def not_for(flavour: str, device: str) -> str | None:
    """Say why this flavour runs nothing on devices of this class, or give None."""
    if flavour == "tensorrt_rtx" and device in _NOT_FOR_RTX:
        return (
            f"TensorRT for RTX runs on GeForce and RTX GPUs, this one is {device}: pip uninstall tensorrt-rtx, and "
            f"pip install 'phasewalk[tensorrt]'"
        )
    return None
