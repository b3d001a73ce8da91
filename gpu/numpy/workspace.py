"""The memory in which the NumPy engine works: allocated once, sliced to the tokens at hand."""

import math
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig

Float32Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class Workspace:
    """What lies between the tokens and the logits: for each row in decode, for each token of a chunk in prefill."""

    x: Float32Array  # [tokens, hidden] float32, the residual stream
    normed: Float32Array  # [tokens, hidden] float32
    delta: Float32Array  # [tokens, hidden] float32, what a block adds to x
    norms: Float32Array  # [tokens, 1] float32
    cosine: Float32Array  # [tokens, 1, head_dim] float32
    sine: Float32Array  # [tokens, 1, head_dim] float32, signed
    qkv: Float32Array  # [tokens, heads + 2 kv_heads, head_dim] float32
    swapped: Float32Array  # [tokens, heads + kv_heads, head_dim] float32
    head_norms: Float32Array  # [tokens, heads + kv_heads, 1] float32
    attended: Float32Array  # [tokens, heads, head_dim] float32
    gate_up: Float32Array  # [tokens, 2 intermediate] float32
    sigmoid: Float32Array  # [tokens, intermediate] float32
    columns: Float32Array  # [tokens, widest matrix] float32, results of `Linear` before they are transposed

    @classmethod
    def allocate(cls, model: ModelConfig, tokens: int) -> Self:
        """Reserve room for `tokens` tokens; the system commits it as it is used."""
        return cls(**{name: np.empty((tokens, *shape), np.float32) for name, shape in _shapes(model).items()})

    @classmethod
    def numbers(cls, model: ModelConfig) -> int:
        """How many numbers a token takes."""
        return sum(math.prod(shape) for shape in _shapes(model).values())

    def first(self, tokens: int) -> Self:
        """Give a view of the first `tokens` tokens."""
        return type(self)(*(getattr(self, field.name)[:tokens] for field in fields(self)))


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each field for one token."""
    turned = model.heads + model.kv_heads
    widest = max(model.vocab, 2 * model.intermediate, (turned + model.kv_heads) * model.head_dim, model.hidden)
    return {
        "x": (model.hidden,),
        "normed": (model.hidden,),
        "delta": (model.hidden,),
        "norms": (1,),
        "cosine": (1, model.head_dim),
        "sine": (1, model.head_dim),
        "qkv": (turned + model.kv_heads, model.head_dim),
        "swapped": (turned, model.head_dim),
        "head_norms": (turned, 1),
        "attended": (model.heads, model.head_dim),
        "gate_up": (2 * model.intermediate,),
        "sigmoid": (model.intermediate,),
        "columns": (widest,),
    }
