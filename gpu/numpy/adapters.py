"""LoRA adapters in memory that the NumPy engine binds once, and what they add to a product."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu.adapter import Adapter, adapted_shapes
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import Checkpoint
from gpu.numpy.layers import ONE_THREAD_ELEMENTS

Float32Array = npt.NDArray[np.float32]

QKV, OUTPUT, GATE_UP, DOWN = range(4)  # the products of a layer, see `gpu.numpy.weights.LayerWeights`


@dataclass(slots=True, frozen=True)
class _Change:
    """What an adapter adds to a part of a product: (x Aᵀ) Bᵀ."""

    a: Float32Array  # [rank, in] float32
    b: Float32Array  # [rank, out] float32, which is Bᵀ
    part: slice  # of the product's numbers
    between: Float32Array  # [rank] float32, x Aᵀ of one token
    blocks: list[tuple[Float32Array, slice, Float32Array]]  # of b, the part that each changes, and by what

    @classmethod
    def of(cls, a: Float32Array, b: Float32Array, part: slice, between: Float32Array, added: Float32Array) -> "_Change":
        """Part b into blocks that no BLAS splits over threads."""
        rank, outputs = b.shape
        size = max(1, ONE_THREAD_ELEMENTS // rank)
        blocks = []
        for first in range(0, outputs, size):
            count = min(size, outputs - first)
            at = part.start + first
            blocks.append((b[:, first : first + count], slice(at, at + count), added[:count]))
        return cls(a, b, part, between[:rank], blocks)


class Adapters:
    """Room for so many adapters of so high a rank, all of it taken at once; the system commits what is written.

    Weights of norms, and the scale of queries, are multiplied into the matrices as they are into the model's own, see
    `gpu.numpy.weights`: an adapter reads the same vectors.

    Parameters
    ----------
    model, checkpoint
        The model, and its weights, of which the norms are read.
    count, rank : int
        Adapters, and the highest rank of each.
    chunk : int
        Tokens of a prompt that are computed together.
    """

    def __init__(self, model: ModelConfig, checkpoint: Checkpoint, *, count: int, rank: int, chunk: int) -> None:
        self._model, self._shapes = model, adapted_shapes(model)
        widest = max(shape[0] for shape in self._shapes.values())
        self._a = {name: np.zeros((count, rank * inputs), np.float32) for name, (_, inputs) in self._shapes.items()}
        self._b = {name: np.zeros((count, outputs * rank), np.float32) for name, (outputs, _) in self._shapes.items()}
        self._between = np.zeros(rank, np.float32)
        self._added = np.zeros(widest, np.float32)
        self._between_chunk = np.zeros(chunk * rank, np.float32)
        self._added_chunk = np.zeros(chunk * widest, np.float32)
        # By adapter, layer and product: what is added to it.
        self._changes: list[list[list[list[_Change]]]] = [[] for _ in range(count)]
        self._norms = [
            [checkpoint.read(f"model.layers.{layer}.{norm}_layernorm.weight") for norm in ("input", "post_attention")]
            for layer in range(model.layers)
        ]

    @staticmethod
    def numbers(model: ModelConfig, *, count: int, rank: int, chunk: int) -> int:
        """How many numbers such room takes."""
        shapes = adapted_shapes(model).values()
        widest = max(shape[0] for shape in shapes)
        return count * rank * sum(map(sum, shapes)) + (chunk + 1) * (rank + widest)

    def load(self, index: int, adapter: Adapter) -> None:
        """Put an adapter into the place of this index."""
        changes: list[list[list[_Change]]] = [[[] for _ in range(4)] for _ in range(self._model.layers)]
        for name, (a, b) in adapter.matrices.items():
            rank, inputs = a.shape
            outputs = len(b)
            mine = _Change.of(
                self._a[name][index, : a.size].reshape(rank, inputs),
                self._b[name][index, : b.size].reshape(rank, outputs),
                self._part(name),
                self._between,
                self._added,
            )
            mine.a[...], mine.b[...] = a, b.T
            _, _, layer, _, projection = name.split(".")
            product = _PRODUCTS[projection]
            if product in (QKV, GATE_UP):
                mine.a[...] *= self._norms[int(layer)][product == GATE_UP]
            if projection == "q_proj" and not self._model.qk_norm:
                mine.b[...] *= np.float32(1 / math.sqrt(self._model.head_dim))
            changes[int(layer)][product].append(mine)
        self._changes[index] = changes

    def add(self, index: int, layer: int, product: int, x: Float32Array, out: Float32Array) -> None:
        """Add to a product of one token.

        Parameters
        ----------
        x : ndarray, [in] float32
        out : ndarray, [out] float32
        """
        for change in self._changes[index][layer][product]:
            np.vecdot(change.a, x, out=change.between)
            for b, part, added in change.blocks:
                np.vecmat(change.between, b, out=added)
                out[part] += added

    def add_to_chunk(self, index: int, layer: int, product: int, x: Float32Array, out: Float32Array) -> None:
        """Add to a product of several tokens of a row.

        Parameters
        ----------
        x : ndarray, [tokens, in] float32
        out : ndarray, [tokens, out] float32
        """
        tokens = len(x)
        for change in self._changes[index][layer][product]:
            rank, outputs = change.b.shape
            between = self._between_chunk[: tokens * rank].reshape(tokens, rank)
            added = self._added_chunk[: tokens * outputs].reshape(tokens, outputs)
            np.matmul(x, change.a.T, out=between)
            np.matmul(between, change.b, out=added)
            out[:, change.part] += added

    def _part(self, name: str) -> slice:
        """Give the numbers of a product that a linear layer makes."""
        first = 0
        for other, (outputs, _) in self._shapes.items():
            if other == name:
                return slice(first, first + outputs)
            if other.rpartition(".")[0] == name.rpartition(".")[0] and _product(other) == _product(name):
                first += outputs
        raise KeyError(name)


_PRODUCTS = {
    "q_proj": QKV, "k_proj": QKV, "v_proj": QKV, "o_proj": OUTPUT, "gate_proj": GATE_UP, "up_proj": GATE_UP,
    "down_proj": DOWN,
}  # fmt: skip


def _product(name: str) -> int:
    return _PRODUCTS[name.rpartition(".")[2]]
