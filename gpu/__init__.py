"""Engines that run language models: pre-bound buffers, a linear KV cache, checkpoints and reproducible sampling."""

from typing import TYPE_CHECKING, Any

from gpu.adapter import Adapter
from gpu.bandwidth import measure_read_bandwidth
from gpu.buffers import BufferInfo, Buffers
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint, tokenizer_fingerprint
from gpu.checkpoint.hub import resolve_checkpoint
from gpu.checkpoint.index import Checkpoint, Progress, expected_tensors
from gpu.engine import Engine
from gpu.errors import (
    AdapterError,
    CapacityError,
    CheckpointError,
    DeviceError,
    ExportError,
    ForkedError,
    LogitsError,
    NoFreeRows,
    OptionError,
    PlanError,
    SelfCheckError,
)
from gpu.host_engine import HostEngine
from gpu.kv_cache import LinearKVCache
from gpu.load import (
    EngineChoice,
    choose_engine,
    engine_device,
    engines,
    load_engine,
    refused_engine,
    unavailable_engines,
)
from gpu.numpy.engine import NumpyEngine
from gpu.penalties import Penalties, penalised
from gpu.profile import DeviceProfile, KeyNumber, Pass, StepPart, Work
from gpu.rope import RopeConfig
from gpu.rows import LoadedAdapter, RowKeeper
from gpu.sampling import Candidates, candidates, check_sampling, sample
from gpu.self_check import self_check

if TYPE_CHECKING:
    from gpu.cuda.engine import CudaEngine as CudaEngine
    from gpu.onnx.engine import OnnxEngine as OnnxEngine
    from gpu.tensorrt.engine import TensorRTEngine as TensorRTEngine

__all__ = [
    "Adapter",
    "AdapterError",
    "BufferInfo",
    "Buffers",
    "Candidates",
    "CapacityError",
    "Checkpoint",
    "CheckpointError",
    "CudaEngine",
    "DeviceError",
    "DeviceProfile",
    "Engine",
    "EngineChoice",
    "ExportError",
    "ForkedError",
    "HostEngine",
    "KeyNumber",
    "LinearKVCache",
    "LoadedAdapter",
    "LogitsError",
    "ModelConfig",
    "NoFreeRows",
    "NumpyEngine",
    "OnnxEngine",
    "OptionError",
    "Pass",
    "Penalties",
    "PlanError",
    "Progress",
    "RopeConfig",
    "RowKeeper",
    "SelfCheckError",
    "StepPart",
    "TensorRTEngine",
    "Work",
    "candidates",
    "check_sampling",
    "choose_engine",
    "engine_device",
    "engines",
    "expected_tensors",
    "load_engine",
    "measure_read_bandwidth",
    "model_fingerprint",
    "penalised",
    "refused_engine",
    "resolve_checkpoint",
    "sample",
    "self_check",
    "tokenizer_fingerprint",
    "unavailable_engines",
]


def __getattr__(name: str) -> Any:
    """Import an engine that needs more than this package when it is asked for: who has no need need not wait for it."""
    if name == "CudaEngine":
        from gpu.cuda.engine import CudaEngine

        return CudaEngine
    if name == "OnnxEngine":
        from gpu.onnx.engine import OnnxEngine

        return OnnxEngine
    if name == "TensorRTEngine":
        from gpu.tensorrt.engine import TensorRTEngine

        return TensorRTEngine
    raise AttributeError(f"module 'gpu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
