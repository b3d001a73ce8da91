"""The graph of a decode step of several rows, each with a cache of its own: weights are read once for all of them."""

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from gpu.checkpoint.config import ModelConfig
from gpu.onnx.graph import Decoder, cache_names, whole
from gpu.onnx.identity import Identity
from gpu.onnx.lora import RANK, lora_names, lora_shapes


def together_of(model: ModelConfig, identity: Identity, rows: int) -> ModelProto:
    """Make a graph that feeds one token to each of `rows` rows; its weights are those of the export.

    It differs from the exported graph in that caches and lengths are inputs of their own for each row r, so that
    rows need not lie side by side, nor be equally long: `positions.r`, `kv_cache.L.keys.r` and `.values.r`, and the
    outputs `present.` of these. `input_ids` is [rows, 1], and there are no `input_lengths`. With a `lora_rank` each row
    has an adapter of its own, `lora_a.L.P.r` and `lora_b.L.P.r`, of a rank of its own.
    """
    return whole(_Together(model, identity, rows).graph(), identity)


class _Together(Decoder):
    """Products with weights are of all rows; attention and adapters are of each row alone, in the shapes of one."""

    def __init__(self, model: ModelConfig, identity: Identity, rows: int) -> None:
        super().__init__(model, identity)
        self._rows = rows
        self._gives_company = False  # they have one another

    def _mask(self) -> None:
        """None is needed: a row's one token sees all that is looked at."""
        for row in range(self._rows):
            self._node("Shape", f"positions.{row}", name=f"attended.{row}")
        self._apart("write_index")

    def _attend(self, layer: int, q: str, k: str, v: str) -> str:
        for name in (q, k, v):
            self._apart(name)
        heads = []
        for row in range(self._rows):
            seen = [
                self._seen(
                    self._node(
                        "TensorScatter", f"{cache}.{row}", f"{new}.{row}", f"write_index.{row}",
                        name=f"present.{cache}.{row}", axis=2,
                    ),
                    f"attended.{row}",
                )
                for cache, new in zip(cache_names(layer), (k, v), strict=True)
            ]  # fmt: skip
            heads.append(
                self._node("Attention", f"{q}.{row}", *seen, name=f"model.layers.{layer}.self_attn.attended.{row}")
            )
        return self._node("Concat", *heads, name=f"model.layers.{layer}.self_attn.attended", axis=0)

    def _split(self, projected: str, at: str, heads: int) -> str:
        self._shape(f"split_{heads}", [0, heads, 1, self._model.head_dim])  # of one token, so that nothing moves
        return self._node("Reshape", projected, f"split_{heads}", name=f"{at}.heads")

    def _joined(self, attended: str, at: str) -> str:
        self._shape("joined_heads", [0, 1, self._model.heads * self._model.head_dim])
        return self._node("Reshape", attended, "joined_heads", name=at + "joined")

    def _change(self, x: str, at: str) -> str:
        self._apart(x)
        changes = [
            self._low_rank(f"{x}.{row}", [f"{name}.{row}" for name in lora_names(at)]) for row in range(self._rows)
        ]
        return self._node("Concat", *changes, name=f"{at}.change", axis=0)

    def _last_token(self, x: str) -> str:
        self._integers("last_axis", [1])
        return self._node("Squeeze", x, "last_axis", name="last")

    def _apart(self, name: str) -> None:
        """Give each row's part of something a name: its own, and the row's number."""
        self._add(
            helper.make_node(
                "Split", [name], [f"{name}.{row}" for row in range(self._rows)], name=f"{name}.apart",
                axis=0, num_outputs=self._rows,
            )
        )  # fmt: skip

    def _inputs(self) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, [self._rows, 1]),
            helper.make_tensor_value_info("write_index", TensorProto.INT64, [self._rows]),
            *(
                helper.make_tensor_value_info(f"positions.{row}", TensorProto.INT64, [f"attended.{row}"])
                for row in range(self._rows)
            ),
        ]

    def _caches(self, prefix: str) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info(f"{prefix}{name}.{row}", self._type, self._cache_shape(1))
            for layer in range(self._model.layers)
            for name in cache_names(layer)
            for row in range(self._rows)
        ]

    def _adapter(self) -> list[ValueInfoProto]:
        if self._identity.lora_rank is None:
            return []
        return [
            helper.make_tensor_value_info(
                f"{name}.{row}", self._type, [f"{part}.{row}" if part == RANK else part for part in shape]
            )
            for name, shape in lora_shapes(self._model).items()
            for row in range(self._rows)
        ]
