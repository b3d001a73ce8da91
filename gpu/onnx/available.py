"""Whether graphs can be made and run here, and what to install if not; imports neither onnx nor onnxruntime."""

from importlib.util import find_spec

INSTALL = "pip install 'phasewalk[onnx]'"


def missing() -> str | None:
    """Say why no graph can be made or run in this process, or give None."""
    for module in ("onnx", "onnxruntime"):
        if find_spec(module) is None:
            return f"{module} is not installed: {INSTALL}"
    return None
