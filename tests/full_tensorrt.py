"""The bindings of the full TensorRT, which install without its libraries: enough to look names up.

`pip install --no-deps tensorrt-cu13-bindings` gets them. The few functions that they want of the libraries are compiled
here, and do nothing.
"""

import ctypes
import shutil
import subprocess
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion",
    "getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip


def full_tensorrt(folder: Path) -> ModuleType | str:
    """Give the module, or say why it cannot be had; `folder` takes what is compiled."""
    if find_spec("tensorrt") is not None:
        return import_module("tensorrt")
    compiler = shutil.which("gcc")
    if find_spec("tensorrt_bindings") is None or compiler is None:
        return "neither tensorrt is installed, nor its bindings alone with a compiler"
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}() {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        name = f"lib{library}.so.11"
        made = folder / name
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", made, source], check=True)
        ctypes.CDLL(str(made))
    return import_module("tensorrt_bindings")
