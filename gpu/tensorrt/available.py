"""Which flavour of TensorRT is installed, and what to install if none; imports neither."""

from importlib.util import find_spec

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # names of modules; the first one that is there is used
INSTALL = "pip install 'phasewalk[tensorrt-rtx]' (GeForce and RTX GPUs) or 'phasewalk[tensorrt]' (any NVIDIA GPU)"


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
