"""ONNX Runtime, as far as it is used: a session of a graph, and memory that is bound to its inputs and outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from gpu.errors import ExportError
from gpu.printable import printable

VERSION: str = onnxruntime.__version__
# It makes one Gemm of a product and its bias, which rounds a row by how many rows there are; a MatMul does not.
_DISABLED = ["MatMulAddFusion"]
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class Bind(Protocol):
    """`bind_input` or `bind_output` of a binding."""

    def __call__(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...


class Binding(Protocol):
    """What is used of `onnxruntime.IOBinding`, which has no types."""

    bind_input: Bind
    bind_output: Bind


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`, which has no types."""

    def io_binding(self) -> Binding: ...

    def run_with_iobinding(self, iobinding: Binding) -> None: ...


def bind(bind: Bind, name: str, array: npt.NDArray[Any]) -> None:
    """Bind an array's memory, which must outlive the binding; nothing is copied."""
    assert array.flags.c_contiguous
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_cache(binding: Binding, name: str, cache: npt.NDArray[np.float32]) -> None:
    """Bind a cache as past and as present: one memory, written where it lies."""
    bind(binding.bind_input, name, cache)
    bind(binding.bind_output, f"present.{name}", cache)


def open_session(graph: Path | bytes, *, data: Path, threads: int) -> Session:
    """Load a graph, whose weights lie in the folder `data`.

    Raises
    ------
    ExportError
        With the words of ONNX Runtime.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # one would be kept for every length of a row
    options.add_session_config_entry(_DATA_FOLDER, str(data))
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session: Session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED
        )
    except Exception as error:  # of kinds that ONNX Runtime keeps to itself
        raise ExportError(
            f"ONNX Runtime {VERSION} cannot load the graph in {printable(data)}: {printable(error, 400)}"
        ) from None
    return session
