"""A LoRA adapter as inputs of the graph: their names and shapes, and what is bound where there is none."""

import math

import numpy as np
import numpy.typing as npt

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
