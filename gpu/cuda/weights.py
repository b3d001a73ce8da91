"""Which tensor of a checkpoint goes where on the device."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.cuda.arena import Arena
from gpu.cuda.device import Device
from gpu.cuda.shape import Shape
from gpu.cuda.staging import Staging


class Place(NamedTuple):
    """The rows of an array that the rows of a tensor become: `first`, `first + step`, and so on.

    With `half`, which is half a head, the two rows that rotary embeddings turn together lie next to each other instead.
    """

    array: str
    first: int = 0
    step: int = 1
    half: int = 0


def places(model: ModelConfig) -> dict[str, Place]:
    """Give the place of every tensor that a model may have.

    Matrices are joined and their rows put in the order that saves the kernels a step; norms and biases stay float32.
    """
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    turned = 0 if model.qk_norm else model.head_dim // 2  # a kernel of its own turns heads that are normalised first
    found = {
        "model.embed_tokens.weight": Place("head" if model.tied_embeddings else "embedding"),
        "model.norm.weight": Place("final_norm"),
        "lm_head.weight": Place("head"),
    }
    for layer in range(model.layers):
        before = f"model.layers.{layer}"
        for kind, after in (("weight", ""), ("bias", "_bias")):
            qkv, gate_up = f"{layer}.qkv{after}", f"{layer}.gate_up{after}"
            found |= {
                f"{before}.self_attn.q_proj.{kind}": Place(qkv, half=turned),
                f"{before}.self_attn.k_proj.{kind}": Place(qkv, queries, half=turned),
                f"{before}.self_attn.v_proj.{kind}": Place(qkv, queries + keys),
                f"{before}.self_attn.o_proj.{kind}": Place(f"{layer}.output{after}"),
                f"{before}.mlp.gate_proj.{kind}": Place(gate_up, 0, step=2),
                f"{before}.mlp.up_proj.{kind}": Place(gate_up, 1, step=2),
                f"{before}.mlp.down_proj.{kind}": Place(f"{layer}.down{after}"),
            }
        found |= {
            f"{before}.input_layernorm.weight": Place(f"{layer}.input_norm"),
            f"{before}.self_attn.q_norm.weight": Place(f"{layer}.query_norm"),
            f"{before}.self_attn.k_norm.weight": Place(f"{layer}.key_norm"),
            f"{before}.post_attention_layernorm.weight": Place(f"{layer}.inner_norm"),
        }
    return found


def rows_of(place: Place, count: int) -> npt.NDArray[np.int64]:
    """Give the rows of the array that the rows of a tensor become, as many as it has."""
    rows = np.arange(count)
    if place.half:
        head, within = np.divmod(rows, 2 * place.half)
        rows = head * 2 * place.half + within % place.half * 2 + within // place.half
    return place.first + rows * place.step


def write_random(device: Device, shape: Shape, arena: Arena, staging: Staging, *, seed: int = 0) -> None:
    """Write weights that compute nothing in particular, for who measures: norms are 1, and no logit is infinite."""
    for number, (name, array) in enumerate(shape.weights().items()):
        kind = name.split(".")[-1]
        if "norm" in kind:
            staging.write(arena.lines(name), np.ones(array.shape, np.float32))
        elif array.dtype in ("bfloat16", "uint8"):
            product = shape.products["head" if kind == "embedding" else kind]
            device.launch(
                "random_matrix", (min(product.n, 8 * device.processors), 1, 1), 256, seed << 32 | number, product.n,
                product.k, arena.at(name),
            )  # fmt: skip
