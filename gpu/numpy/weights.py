"""A model's weights in memory as the NumPy engine reads them: joined, norms folded in, float32."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import Checkpoint

Float32Array = npt.NDArray[np.float32]


@dataclass(slots=True, frozen=True)
class LayerWeights:
    """One layer. Matrices are [out, in], as in the checkpoint: a row is what one dot product reads.

    The weights of the two norms are multiplied into the columns of the matrices that follow them, and the attention's
    1 / sqrt(head_dim) into the queries.
    """

    qkv: Float32Array  # [(heads + 2 kv_heads) * head_dim, hidden] float32
    qkv_bias: Float32Array | None  # [(heads + 2 kv_heads) * head_dim] float32
    qk_norm: Float32Array | None  # [heads + kv_heads, head_dim] float32
    output: Float32Array  # [hidden, heads * head_dim] float32
    output_bias: Float32Array | None  # [hidden] float32
    gate_up: Float32Array  # [2 intermediate, hidden] float32
    gate_up_bias: Float32Array | None  # [2 intermediate] float32
    down: Float32Array  # [hidden, intermediate] float32
    down_bias: Float32Array | None  # [hidden] float32

    @classmethod
    def read(cls, model: ModelConfig, checkpoint: Checkpoint, index: int) -> Self:
        """Read and join the tensors of layer `index`."""

        def read(*names: str) -> Float32Array:
            return checkpoint.read(*(f"model.layers.{index}.{name}" for name in names))

        scale = np.float32(1 / math.sqrt(model.head_dim))
        queries = model.heads * model.head_dim
        qkv = read("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
        qkv *= read("input_layernorm.weight")
        qkv_bias = qk_norm = None
        if model.qkv_bias:
            qkv_bias = read("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
        if model.qk_norm:
            # A norm undoes any factor on what it reads, so here the scale goes into its weight instead.
            query_norm, key_norm = read("self_attn.q_norm.weight") * scale, read("self_attn.k_norm.weight")
            qk_norm = np.concatenate([[query_norm] * model.heads, [key_norm] * model.kv_heads])
        else:
            qkv[:queries] *= scale
            if qkv_bias is not None:
                qkv_bias[:queries] *= scale
        gate_up = read("mlp.gate_proj.weight", "mlp.up_proj.weight")
        gate_up *= read("post_attention_layernorm.weight")
        return cls(
            qkv=qkv,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            output=read("self_attn.o_proj.weight"),
            output_bias=read("self_attn.o_proj.bias") if model.output_bias else None,
            gate_up=gate_up,
            gate_up_bias=read("mlp.gate_proj.bias", "mlp.up_proj.bias") if model.mlp_bias else None,
            down=read("mlp.down_proj.weight"),
            down_bias=read("mlp.down_proj.bias") if model.mlp_bias else None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that one token reads of this layer."""
        arrays = (getattr(self, name) for name in self.__slots__)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(slots=True, frozen=True)
class Weights:
    """All weights of a model, read-only after loading."""

    embedding: Float32Array  # [vocab, hidden] float32
    layers: tuple[LayerWeights, ...]
    final_norm: Float32Array | None  # [hidden] float32; None where it is folded into an output matrix of its own
    head: Float32Array  # [vocab, hidden] float32; the embedding itself if tied

    @classmethod
    def read(cls, model: ModelConfig, checkpoint: Checkpoint) -> Self:
        """Read a checkpoint, layer by layer."""
        embedding = checkpoint.read("model.embed_tokens.weight")
        layers = tuple(LayerWeights.read(model, checkpoint, index) for index in range(model.layers))
        norm = checkpoint.read("model.norm.weight")
        if model.tied_embeddings:
            return cls(embedding, layers, norm, embedding)
        head = checkpoint.read("lm_head.weight")
        head *= norm
        return cls(embedding, layers, None, head)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes of the matrices that a decode step multiplies by."""
        layer = self.layers[0]
        matrices = (layer.qkv, layer.output, layer.gate_up, layer.down, self.head)
        return tuple((len(matrix), matrix.shape[1]) for matrix in matrices)

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one decode step reads, without the few of the embedding rows."""
        return sum(layer.nbytes for layer in self.layers) + self.head.nbytes
