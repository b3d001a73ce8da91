"""From a checkpoint to the device: joined, rounded to bfloat16 and laid out in tiles, one matrix at a time."""

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.index import Checkpoint
from gpu.cuda.arena import Arena
from gpu.cuda.bfloat16 import rounded
from gpu.cuda.device import Lines
from gpu.cuda.shape import Shape
from gpu.cuda.staging import Staging
from gpu.cuda.tiles import slabs

Float32Array = npt.NDArray[np.float32]

_BLOCK = 4 << 20  # random numbers, again and again


class WeightWriter:
    """Writes the tensors of a checkpoint to where the kernels read them.

    Norms and biases stay float32; the attention's scale is applied by the kernels.
    """

    def __init__(self, shape: Shape, arena: Arena, staging: Staging) -> None:
        self._shape, self._arena, self._staging = shape, arena, staging

    def write(self, checkpoint: Checkpoint) -> None:
        """Write them all, in the order of the checkpoint's layers."""
        model, read = self._shape.model, checkpoint.read
        embedding = "head" if model.tied_embeddings else "embedding"
        self._matrix(embedding, read("model.embed_tokens.weight"))
        for layer in range(model.layers):
            before = f"model.layers.{layer}"
            heads = [f"{before}.self_attn.{name}_proj" for name in "qkv"]
            inner = [f"{before}.mlp.{name}_proj" for name in ("gate", "up")]
            self._vector(f"{layer}.input_norm", read(f"{before}.input_layernorm.weight"))
            self._matrix(f"{layer}.qkv", self._paired(read(*(f"{name}.weight" for name in heads))))
            if model.qkv_bias:
                self._vector(f"{layer}.qkv_bias", self._paired(read(*(f"{name}.bias" for name in heads))))
            if model.qk_norm:
                self._vector(f"{layer}.query_norm", read(f"{before}.self_attn.q_norm.weight"))
                self._vector(f"{layer}.key_norm", read(f"{before}.self_attn.k_norm.weight"))
            self._matrix(f"{layer}.output", read(f"{before}.self_attn.o_proj.weight"))
            if model.output_bias:
                self._vector(f"{layer}.output_bias", read(f"{before}.self_attn.o_proj.bias"))
            self._vector(f"{layer}.inner_norm", read(f"{before}.post_attention_layernorm.weight"))
            self._matrix(f"{layer}.gate_up", _interleaved(read(*(f"{name}.weight" for name in inner))))
            if model.mlp_bias:
                self._vector(f"{layer}.gate_up_bias", _interleaved(read(*(f"{name}.bias" for name in inner))))
            self._matrix(f"{layer}.down", read(f"{before}.mlp.down_proj.weight"))
            if model.mlp_bias:
                self._vector(f"{layer}.down_bias", read(f"{before}.mlp.down_proj.bias"))
        self._vector("final_norm", read("model.norm.weight"))
        if not model.tied_embeddings:
            self._matrix("head", read("lm_head.weight"))

    def write_random(self, seed: int = 0) -> None:
        """Write weights that compute nothing in particular, for who measures: norms are 1, and no logit is infinite."""
        block = rounded(np.random.default_rng(seed).standard_normal(_BLOCK, np.float32) * np.float32(0.02))
        for name, array in self._shape.weights().items():
            if array.dtype == "float32":
                self._vector(name, np.full(array.shape, "norm" in name, np.float32))
                continue
            for first in range(0, array.nbytes, block.nbytes):
                size = min(block.nbytes, array.nbytes - first)
                self._staging.write(Lines(self._arena.at(name) + first, size), block[: size // 2])

    def _paired(self, joined: Float32Array) -> Float32Array:
        """Put the two numbers that rotary embeddings turn together next to each other.

        Not where heads are normalised first: a kernel of its own turns them then.
        """
        model = self._shape.model
        if model.qk_norm:
            return joined
        turned, half = (model.heads + model.kv_heads) * model.head_dim, model.head_dim // 2
        order = np.arange(len(joined))
        order[:turned] = order[:turned].reshape(-1, 2, half).transpose(0, 2, 1).reshape(-1)
        return joined[order]

    def _matrix(self, name: str, matrix: Float32Array) -> None:
        address = self._arena.at(name)
        for slab in slabs(matrix):
            self._staging.write(Lines(address, slab.nbytes), slab)
            address += slab.nbytes

    def _vector(self, name: str, vector: Float32Array) -> None:
        self._staging.write(Lines(self._arena.at(name), vector.nbytes), vector)


def _interleaved(joined: Float32Array) -> Float32Array:
    """Put rows of gate and up, which lie one half below the other, next to each other."""
    half = len(joined) // 2
    mixed = np.empty_like(joined)
    mixed[0::2], mixed[1::2] = joined[:half], joined[half:]
    return mixed
