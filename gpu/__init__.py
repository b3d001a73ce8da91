"""Engines that run language models: pre-bound buffers, a linear KV cache, checkpoints and reproducible sampling."""

from typing import TYPE_CHECKING, Any

from gpu.bandwidth import measure_read_bandwidth
from gpu.buffers import BufferInfo, Buffers
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint, tokenizer_fingerprint
from gpu.checkpoint.hub import resolve_checkpoint
from gpu.checkpoint.index import Checkpoint, Progress, expected_tensors
from gpu.engine import Engine
from gpu.errors import (
    CapacityError,
    CheckpointError,
    DeviceError,
    ForkedError,
    LogitsError,
    NoFreeRows,
    OptionError,
    SelfCheckError,
)
from gpu.host_engine import HostEngine
from gpu.kv_cache import LinearKVCache
from gpu.load import engine_device, engines, load_engine, refused_engine, unavailable_engines
from gpu.numpy.engine import NumpyEngine
from gpu.profile import DeviceProfile, KeyNumber, Pass, StepPart, Work
from gpu.rope import RopeConfig
from gpu.rows import RowKeeper
from gpu.sampling import Candidates, candidates, check_sampling, sample
from gpu.self_check import self_check

if TYPE_CHECKING:
    from gpu.cuda.engine import CudaEngine as CudaEngine

__all__ = [
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
    "ForkedError",
    "HostEngine",
    "KeyNumber",
    "LinearKVCache",
    "LogitsError",
    "ModelConfig",
    "NoFreeRows",
    "NumpyEngine",
    "OptionError",
    "Pass",
    "Progress",
    "RopeConfig",
    "RowKeeper",
    "SelfCheckError",
    "StepPart",
    "Work",
    "candidates",
    "check_sampling",
    "engine_device",
    "engines",
    "expected_tensors",
    "load_engine",
    "measure_read_bandwidth",
    "model_fingerprint",
    "refused_engine",
    "resolve_checkpoint",
    "sample",
    "self_check",
    "tokenizer_fingerprint",
    "unavailable_engines",
]


def __getattr__(name: str) -> Any:
    """Import the engine of a device when it is asked for: who has none need not wait for it."""
    if name != "CudaEngine":
        raise AttributeError(f"module 'gpu' has no attribute {name!r}")
    from gpu.cuda.engine import CudaEngine

    return CudaEngine


def __dir__() -> list[str]:
    return __all__
