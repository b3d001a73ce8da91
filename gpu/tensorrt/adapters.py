"""LoRA adapters in memory of the device: where each matrix of each lies for good, and how it comes there."""

import math

import numpy as np
import numpy.typing as npt

from gpu.adapter import Adapter
from gpu.checkpoint.config import ModelConfig
from gpu.cuda.arena import Arena, Array, Plan
from gpu.cuda.cache_numbers import CACHE_NUMBERS
from gpu.cuda.device import Lines
from gpu.cuda.staging import Staging
from gpu.onnx.lora import RANK, lora_names, lora_shapes
from gpu.tensorrt.library import ALIGNMENT

Shape = tuple[int, ...]


def adapter_memory(model: ModelConfig, dtype: str, *, count: int, rank: int) -> Plan:
    """Plan the memory for so many adapters of so high a rank; each matrix begins where TensorRT takes it."""
    if not count:
        return {}
    step = ALIGNMENT // CACHE_NUMBERS[dtype].itemsize
    return {
        name: Array((count, -(-math.prod(_shape(shape, rank)) // step) * step), dtype)
        for name, shape in lora_shapes(model).items()
    }


class DeviceAdapters:
    """The adapters that were loaded; each has one rank, its highest, and zeros where it has no matrix."""

    def __init__(self, model: ModelConfig, dtype: str, *, count: int) -> None:
        self._inputs = lora_shapes(model)
        self._numbers = CACHE_NUMBERS[dtype]
        self._ranks = [1] * count

    def load(self, index: int, adapter: Adapter, arena: Arena, staging: Staging) -> None:
        """Send an adapter into the place of this index."""
        self._ranks[index] = adapter.rank
        matrices = dict[str, npt.NDArray[np.float32]]()
        for linear, (a, b) in adapter.matrices.items():
            of_a, of_b = lora_names(linear)
            matrices |= {of_a: a, of_b: b}
        for name, shape in self.shapes(index).items():
            whole = np.zeros(shape, np.float32)
            if (matrix := matrices.get(name)) is not None:
                whole[: matrix.shape[0], : matrix.shape[1]] = matrix
            rounded = np.ascontiguousarray(self._numbers.rounded(whole))
            staging.write(Lines(arena.at(name, index), rounded.nbytes), rounded)

    def shapes(self, index: int) -> dict[str, Shape]:
        """Give the shapes of an adapter's inputs."""
        return {name: _shape(shape, self._ranks[index]) for name, shape in self._inputs.items()}


def _shape(shape: tuple[int | str, int | str], rank: int) -> Shape:
    return tuple(rank if size == RANK else int(size) for size in shape)
