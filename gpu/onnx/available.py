"""Whether graphs can be made and run here, and what to install if not; imports neither onnx nor onnxruntime."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

INSTALL = "pip install 'phasewalk[onnx]'"
_OLDEST = {"onnx": (1, 19), "onnxruntime": (1, 25)}  # with opset 24; with the operator that writes a cache in place


def missing() -> str | None:
    """Say why no graph can be made or run in this process, or give None."""
    for module, oldest in _OLDEST.items():
        if find_spec(module) is None:
            return f"{module} is not installed: {INSTALL}"
        if (found := _version(module)) is not None and found < oldest:
            return f"{module} is version {_shown(found)}, this needs {_shown(oldest)} or later: {INSTALL}"
    return None


def _version(module: str) -> tuple[int, ...] | None:
    """Major and minor; None if another distribution brings the module, as that for a GPU does."""
    try:
        return tuple(map(int, version(module).split(".")[:2]))
    except (PackageNotFoundError, ValueError):
        return None


def _shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
