"""A LoRA adapter as inputs of the graph: their names and shapes, and what is bound where there is none."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gpu.adapter import Adapter
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import expected_tensors

RANK = "rank"  # the one dimension of all inputs that is open


def lora_names(linear: str) -> tuple[str, str]:
    """Give the names of the two inputs that adapt a linear layer, as `model.layers.3.self_attn.q_proj`."""
    _, _, layer, _, projection = linear.split(".")
    return f"lora_a.{layer}.{projection}", f"lora_b.{layer}.{projection}"


def is_lora(name: str) -> bool:
    """Whether an input is a matrix of an adapter."""
    return name.startswith(("lora_a.", "lora_b."))


def lora_shapes(model: ModelConfig) -> dict[str, tuple[int | str, int | str]]:
    """Give names and shapes of an adapter's inputs, two for each linear layer, in the order of their use.

    They are the matrices of PEFT's files, `lora_A.weight` [rank, in] and `lora_B.weight` [out, rank], and lie as
    these do; whoever binds them has multiplied B by the adapter's scale, which is alpha / rank for most.
    """
    shapes: dict[str, tuple[int | str, int | str]] = {}
    for name, shape in expected_tensors(model).items():
        if name.endswith("_proj.weight"):
            a, b = lora_names(name.removesuffix(".weight"))
            shapes |= {a: (RANK, shape[1]), b: (shape[0], RANK)}
    return shapes


def no_adapter(model: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Give what adds nothing: matrices of rank 1 in float32, all of which are the same few zeros in memory."""
    shapes = {
        name: tuple(1 if size == RANK else int(size) for size in shape) for name, shape in lora_shapes(model).items()
    }
    zeros = np.zeros(max(map(math.prod, shapes.values())), np.float32)
    return {name: zeros[: math.prod(shape)].reshape(shape) for name, shape in shapes.items()}


class AdapterInputs:
    """Memory for so many adapters of so high a rank, in float32, whose addresses are what is bound.

    An adapter has one rank, its highest; matrices of lower ones, and those that it lacks, are zeros.
    """

    def __init__(self, model: ModelConfig, *, count: int, rank: int) -> None:
        self._shapes = lora_shapes(model)
        self._ranks = [1] * count
        self._memory = {
            name: np.zeros((count, rank * _other(shape)), np.float32) for name, shape in self._shapes.items()
        }

    def load(self, index: int, adapter: Adapter) -> None:
        """Put an adapter into the place of this index."""
        self._ranks[index] = adapter.rank
        inputs = self.of(index)
        for linear, (a, b) in adapter.matrices.items():
            of_a, of_b = lora_names(linear)
            inputs[of_a][: len(a)], inputs[of_b][:, : b.shape[1]] = a, b

    def of(self, index: int) -> Mapping[str, npt.NDArray[np.float32]]:
        """Give what is bound for an adapter, by the names of the inputs."""
        rank = self._ranks[index]
        return {
            name: self._memory[name][index, : rank * _other(shape)].reshape(
                [rank if size == RANK else int(size) for size in shape]
            )
            for name, shape in self._shapes.items()
        }


def _other(shape: tuple[int | str, int | str]) -> int:
    """Give the size of a matrix that is not its rank."""
    return next(int(size) for size in shape if size != RANK)
