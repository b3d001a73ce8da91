"""The graph that the engine runs: the exported one's layers and weights, with an operator of ONNX Runtime's own.

`GroupQueryAttention` turns queries and keys, writes keys and values into the cache, and looks at as many of its
positions as each row has, where they lie. In the standard operators of an export each of these is a node, or several.
"""

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from gpu.checkpoint.config import ModelConfig
from gpu.onnx.codes import DOMAIN
from gpu.onnx.graph import Decoder, cache_names, whole
from gpu.onnx.identity import Identity

_HEADS_OF = 8  # its heads have a multiple of so many numbers
_TURNS = 16  # and it turns those that have a multiple of so many; others are turned before


def cannot_fuse(model: ModelConfig) -> str | None:
    """Say why the operator does not take this model's heads, or give None."""
    if model.head_dim % _HEADS_OF == 0:
        return None
    return f"its heads have {model.head_dim} numbers, and ONNX Runtime's attention takes multiples of {_HEADS_OF}"


def fused_of(model: ModelConfig, identity: Identity) -> ModelProto:
    """Make the graph for an export's weights, in float32.

    Inputs and outputs are those of the export, with these for `write_index` and `positions`: `last_position` [batch]
    int32, where each row's last token stands that is fed; `longest` [1] int32, how many positions the row with most of
    them has; and `cosine` and `sine` [capacity, head_dim / 2], of the angles that a token at each position turns by.
    Several rows are fed a token each; several tokens are fed to one row.
    """
    return whole(_Fused(model, identity).graph(), identity, contributed=True)


class _Fused(Decoder):
    """Attention of all rows by one node a layer."""

    def _positions(self) -> None:
        """Only a node that turns what the operator does not needs them."""
        if not self._turns:
            super()._positions()

    def _first_position(self) -> str:
        last = self._node("Cast", "last_position", name="last_long", to=TensorProto.INT64)
        return self._node("Sub", last, self._node("Sub", "sequence", "step", name="backwards"), name="begin")

    def _mask(self) -> None:
        """None is needed: a token sees what stands before it, and itself."""

    def _turn(self) -> None:
        """Cosines and sines are given."""

    def _attend(self, layer: int, normed: str) -> str:
        """[batch, sequence, heads * head_dim]."""
        model, at = self._model, f"model.layers.{layer}.self_attn."
        q = self._queries(normed, at + "q", model.heads)
        k = self._queries(normed, at + "k", model.kv_heads)
        v = self._projected(normed, at + "v")
        caches = cache_names(layer)
        tables = ["cosine", "sine"] if self._turns else []
        attended = at + "attended"
        self._add(
            helper.make_node(
                "GroupQueryAttention", [q, k, v, *caches, "last_position", "longest", *tables],
                [attended, *(f"present.{cache}" for cache in caches)], name=attended, domain=DOMAIN,
                num_heads=model.heads, kv_num_heads=model.kv_heads, do_rotary=int(self._turns),
            )
        )  # fmt: skip
        return attended

    def _queries(self, normed: str, at: str, heads: int) -> str:
        """[batch, sequence, heads * head_dim]: queries, or keys, their heads normalised, and turned if need be."""
        x = self._projected(normed, at)
        size = self._model.head_dim
        if self._model.qk_norm:
            self._integers(f"split_{heads}", [0, 0, heads, size])
            self._integers(f"joined_{heads}", [0, 0, heads * size])
            split = self._node("Reshape", x, f"split_{heads}", name=f"{at}.split")
            x = self._node("Reshape", self._norm(split, f"{at}_norm"), f"joined_{heads}", name=f"{at}.joined")
        if not self._turns:
            x = self._node(
                "RotaryEmbedding", x, "cosine", "sine", "query_positions", name=f"{at}.turned", num_heads=heads
            )
        return x

    @property
    def _turns(self) -> bool:
        """Whether the operator turns queries and keys."""
        return self._model.head_dim % _TURNS == 0

    def _inputs(self) -> list[ValueInfoProto]:
        table: list[int | str | None] = ["capacity", self._model.head_dim // 2]
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "sequence"]),
            helper.make_tensor_value_info("input_lengths", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("last_position", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("longest", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("cosine", TensorProto.FLOAT, table),
            helper.make_tensor_value_info("sine", TensorProto.FLOAT, table),
        ]
