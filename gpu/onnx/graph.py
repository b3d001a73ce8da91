"""The model as one graph of standard operators: read `_Decoder.graph` from top to bottom for the forward pass."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from gpu.checkpoint.config import ModelConfig
from gpu.onnx.codes import CODES, DOMAIN, OPERATOR, SCALES
from gpu.onnx.data import DATA_FILE, ELEMENT_TYPES, Place, places
from gpu.onnx.identity import Identity
from gpu.onnx.lora import lora_names, lora_shapes
from gpu.onnx.products import EMBEDDINGS, HEAD, Product, products

OPSET = 24  # the first with TensorScatter
_IR_VERSION = 11
_SEAL = "phasewalk.graph"  # in the metadata: a digest of all the rest


def cache_names(layer: int) -> tuple[str, str]:
    """Give the names of a layer's keys and values as the graph takes them; it gives them as `present.` and the name."""
    return f"kv_cache.{layer}.keys", f"kv_cache.{layer}.values"


def model_of(model: ModelConfig, identity: Identity) -> ModelProto:
    """Make the whole of an export but its data: equal arguments give an equal graph.

    Inputs: `input_ids` [batch, sequence] int32, the tokens to feed; `input_lengths` [batch] int32, how many of them
    are a row's, the last of which has the logits; `write_index` [batch] int64, the position of the first one;
    `positions` [attended] int64, 0, 1, ... up to the positions of the cache that are looked at, at least
    write_index + sequence; and for each layer `kv_cache.L.keys` and `.values` [batch, kv_heads, capacity, head_dim].
    With a `lora_rank` in the identity, for each layer L and each projection P of q_proj, k_proj, v_proj, o_proj,
    gate_proj, up_proj and down_proj also `lora_a.L.P` [rank, in] and `lora_b.L.P` [out, rank] in the export's dtype,
    one rank of 1 and more for all: the projection of x then gives (x Aᵀ) Bᵀ more, for all rows alike.

    Outputs: `logits` [batch, vocab] float32, and the caches once more as `present.kv_cache.L.keys` and `.values`, which
    may be the same memory: only the positions from write_index on are written.
    """
    operators = [helper.make_opsetid("", OPSET)]
    if identity.quantize is not None:
        operators.append(helper.make_opsetid(DOMAIN, 1))
    graph = _Decoder(model, identity).graph()
    made = helper.make_model(graph, opset_imports=operators, ir_version=_IR_VERSION, producer_name="phasewalk")
    helper.set_model_props(made, identity.metadata())
    seal(made)
    return made


def seal(model: ModelProto) -> None:
    """Write a digest of a graph, and of what is said of it, beside that."""
    digest = _digest(model)
    _unseal(model)
    model.metadata_props.add(key=_SEAL, value=digest)


def unchanged(model: ModelProto) -> bool:
    """Whether a graph is as it was when it was sealed; no proof against whoever seals it again."""
    return [entry.value for entry in model.metadata_props if entry.key == _SEAL] == [_digest(model)]


def _digest(model: ModelProto) -> str:
    bare = ModelProto()
    bare.CopyFrom(model)
    _unseal(bare)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _unseal(model: ModelProto) -> None:
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != _SEAL]
    del model.metadata_props[:]
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)


class _Decoder:
    """Writes the nodes of a graph, each named as what it gives."""

    def __init__(self, model: ModelConfig, identity: Identity) -> None:
        self._model, self._identity = model, identity
        self._type = ELEMENT_TYPES[identity.dtype]
        self._nodes: dict[str, NodeProto] = {}
        self._constants: dict[str, TensorProto] = {}
        self._gives_company = identity.quantize is not None and CODES[identity.quantize].in_company
        self._places = places(model, identity.dtype, identity.quantize)
        self._products = products(model)

    def graph(self) -> GraphProto:
        model = self._model
        self._company()
        self._positions()
        self._mask()
        self._turn()

        x = self._in_company(self._node("Gather", EMBEDDINGS, "input_ids", name="embedded"))
        for layer in range(model.layers):
            at = f"model.layers.{layer}."
            normed = self._norm(x, at + "input_layernorm")
            attended = self._attention(layer, normed)
            x = self._node("Add", x, attended, name=at + "x")
            normed = self._norm(x, at + "post_attention_layernorm")
            x = self._node("Add", x, self._swiglu(at + "mlp.", normed), name=at + "y")
        last = self._norm(self._last_token(x), "model.norm")
        self._float32(self._head(last), "logits")

        return helper.make_graph(
            [*self._nodes.values()],
            "phasewalk",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "sequence"]),
                helper.make_tensor_value_info("input_lengths", TensorProto.INT32, ["batch"]),
                helper.make_tensor_value_info("write_index", TensorProto.INT64, ["batch"]),
                helper.make_tensor_value_info("positions", TensorProto.INT64, ["attended"]),
                *self._caches(""), *self._adapter(),
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", model.vocab]),
             *self._caches("present.")],
            [*self._constants.values(), *(self._weight(place) for place in self._places)],
        )  # fmt: skip

    # --- what holds for all layers --------------------------------------------------------------------------------

    def _positions(self) -> None:
        """`query_positions`, [batch, sequence] int64: where each token that is fed stands."""
        self._scalar("first", 0)
        self._scalar("step", 1)
        self._integers("ones", [1])
        length = self._node("Shape", "input_ids", name="sequence_shape", start=1, end=2)
        length = self._node("Squeeze", length, name="sequence")
        offsets = self._node("Range", "first", length, "step", name="offsets")
        start = self._node("Unsqueeze", "write_index", "ones", name="start")
        self._node("Add", start, offsets, name="query_positions")

    def _mask(self) -> None:
        """`mask`, [batch, 1, sequence, attended] bool: a token sees what stands at its position and before it."""
        self._integers("mask_axes", [1, 3])
        rows = self._node("Unsqueeze", "query_positions", "mask_axes", name="mask_rows")
        self._node("Shape", "positions", name="attended")
        self._node("LessOrEqual", "positions", rows, name="mask")

    def _turn(self) -> None:
        """`cosine` and `sine`, [batch, sequence, head_dim / 2] float32: of the angles that each token turns by."""
        model = self._model
        self._constant("frequencies", model.rope.inverse_frequencies(model.head_dim))
        self._constant("rope_scale", np.float32(model.rope.attention_factor))
        self._integers("two", [2])
        floats = self._float32("query_positions", "float_positions")
        column = self._node("Unsqueeze", floats, "two", name="position_column")
        angles = self._node("Mul", column, "frequencies", name="angles")
        for function, name in (("Cos", "cosine"), ("Sin", "sine")):
            plain = self._node(function, angles, name=f"plain_{name}")
            self._node("Mul", plain, "rope_scale", name=name)

    def _company(self) -> None:
        """`company`, an amount of padding: a lone token is fed with zeros behind it, several are fed as they are.

        `company_of_rows` is that of one token a row.
        """
        if not self._gives_company:
            return
        self._node("Shape", "input_ids", name="rows", end=1)
        self._node("Shape", "input_ids", name="tokens", start=1)
        fed = self._node("ReduceProd", self._node("Shape", "input_ids", name="fed_shape"), name="fed")
        self._integers("pair", [2])
        self._integers("before", [0, 0])
        self._integers("behind", [0])
        for count, name in ((fed, "company"), ("rows", "company_of_rows")):
            at_least = self._node("Max", count, "pair", name=f"{name}.at_least")
            missing = self._node("Sub", at_least, count, name=f"{name}.missing")
            axes = ["before", "before", missing, "behind"] if count == fed else ["before", missing, "behind"]
            self._node("Concat", *axes, name=name, axis=0)

    # --- a layer ----------------------------------------------------------------------------------------------------

    def _attention(self, layer: int, normed: str) -> str:
        """Grouped-query attention of the tokens over what the cache holds, theirs included."""
        model, at = self._model, f"model.layers.{layer}.self_attn."
        q = self._heads(normed, at + "q", model.heads, norm=model.qk_norm, turn=True)
        k = self._heads(normed, at + "k", model.kv_heads, norm=model.qk_norm, turn=True)
        v = self._heads(normed, at + "v", model.kv_heads)
        keys, values = (
            self._seen(self._node("TensorScatter", cache, new, "write_index", name=f"present.{cache}", axis=2))
            for cache, new in zip(cache_names(layer), (k, v), strict=True)
        )
        attended = self._node("Attention", q, keys, values, "mask", name=at + "attended")
        tokens = self._node("Transpose", attended, name=at + "tokens", perm=[0, 2, 1, 3])
        self._integers("joined_heads", [0, 0, model.heads * model.head_dim])
        joined = self._node("Reshape", tokens, "joined_heads", name=at + "joined")
        return self._linear(self._in_company(joined), at + "o_proj", bias=model.output_bias)

    def _heads(self, normed: str, at: str, heads: int, *, norm: bool = False, turn: bool = False) -> str:
        """[batch, heads, sequence, head_dim]: one projection, its heads normalised and turned."""
        projected = self._linear(normed, f"{at}_proj", bias=self._model.qkv_bias, company=False)
        self._integers(f"split_{heads}", [0, 0, heads, self._model.head_dim])
        x = self._node("Reshape", projected, f"split_{heads}", name=f"{at}.split")
        if norm:
            x = self._norm(x, f"{at}_norm")
        x = self._node("Transpose", x, name=f"{at}.heads", perm=[0, 2, 1, 3])
        if not turn:
            return x
        # In float32 whatever the dtype: a rounded cosine would shorten keys and queries.
        turned = self._node("RotaryEmbedding", self._float32(x, f"{at}.wide"), "cosine", "sine", name=f"{at}.turned")
        return self._narrow(turned, f"{at}.rotated")

    def _seen(self, cache: str) -> str:
        """The positions of the cache that are looked at; what lies behind may hold anything, even NaN."""
        self._integers("zero", [0])
        self._integers("two", [2])
        return self._node("Slice", cache, "zero", "attended", "two", name=f"seen.{cache.removeprefix('present.')}")

    def _swiglu(self, at: str, normed: str) -> str:
        bias = self._model.mlp_bias
        gate, up = self._linear(normed, at + "gate_proj", bias=bias), self._linear(normed, at + "up_proj", bias=bias)
        silu = self._node("Mul", gate, self._node("Sigmoid", gate, name=at + "sigmoid"), name=at + "silu")
        return self._linear(self._node("Mul", silu, up, name=at + "gated"), at + "down_proj", bias=bias)

    def _last_token(self, x: str) -> str:
        """[batch, hidden]: of the row's tokens the last."""
        self._scalar("one_back", 1)
        self._integers("last_axes", [1, 2])
        self._integers("last_shape", [1, 1, self._model.hidden])
        self._integers("last_axis", [1])
        lengths = self._node("Cast", "input_lengths", name="lengths", to=TensorProto.INT64)
        index = self._node("Sub", lengths, "one_back", name="last_index")
        column = self._node("Unsqueeze", index, "last_axes", name="last_column")
        spread = self._node("Expand", column, "last_shape", name="last_spread")
        last = self._node("GatherElements", x, spread, name="last_elements", axis=1)
        return self._node("Squeeze", last, "last_axis", name="last")

    def _in_company(self, x: str) -> str:
        return self._node("Pad", x, "company", name=f"{x}.in_company") if self._gives_company else x

    def _without_company(self, x: str) -> str:
        if not self._gives_company:
            return x
        self._integers("zero", [0])
        self._integers("sequence_axis", [1])
        return self._node("Slice", x, "zero", "tokens", "sequence_axis", name=f"{x}.without_company")

    # --- operators --------------------------------------------------------------------------------------------------

    def _norm(self, x: str, at: str) -> str:
        epsilon = self._model.rms_norm_eps
        return self._node("RMSNormalization", x, f"{at}.weight", name=f"{at}.normed", axis=-1, epsilon=epsilon)

    def _linear(self, x: str, at: str, *, bias: bool, company: bool = True) -> str:
        """A linear layer of tokens, and of their company; without company, what it gives is of the tokens alone."""
        if self._identity.quantize is None:
            product = self._node("MatMul", x, f"{at}.weight", name=f"{at}.product")
        else:
            product = self._part(x, at, company)
        if bias:
            product = self._node("Add", product, f"{at}.bias", name=f"{at}.biased")
        if self._identity.lora_rank is None:
            return product
        change = self._change(self._without_company(x), at)
        return self._node("Add", product, self._in_company(change) if company else change, name=f"{at}.adapted")

    def _change(self, x: str, at: str) -> str:
        """What the adapter adds to a linear layer's product: two products, with few numbers between them."""
        for matrix in lora_names(at):
            turned = self._node("Transpose", matrix, name=f"{matrix}.turned", perm=[1, 0])
            x = self._node("MatMul", x, turned, name=f"{matrix}.product")
        return x

    def _head(self, last: str) -> str:
        matrix = EMBEDDINGS if self._model.tied_embeddings else HEAD
        if self._identity.quantize is None:
            return self._node("Gemm", last, matrix, name="projected", transB=1)
        if not self._gives_company:
            return self._quantised(last, self._products[matrix], name="projected")
        padded = self._node("Pad", last, "company_of_rows", name="last_in_company")
        every = self._quantised(padded, self._products[matrix], name="projected_in_company")
        self._integers("zero", [0])
        return self._node("Slice", every, "zero", "rows", name="projected")

    def _part(self, x: str, at: str, company: bool) -> str:
        """The product with a linear layer's matrix, which may be part of one that has others in it."""
        product = self._products[f"{at}.weight"]
        names = [f"{part.removesuffix('.weight')}.product" for part in product.parts]
        if len(names) == 1:
            return self._quantised(x, product, name=names[0])
        joined = self._quantised(x, product, name=f"{product.name.removesuffix('.weight')}.product")
        rows = f"{joined}.rows"
        self._integers(rows, [*product.parts.values()])
        if not company:
            joined = self._without_company(joined)
        self._add(helper.make_node("Split", [joined, rows], names, name=f"{joined}.apart", axis=-1))
        return f"{at}.product"

    def _quantised(self, x: str, product: Product, *, name: str) -> str:
        """The product with a matrix of which there are codes."""
        attributes = CODES[self._identity.quantize or ""].attributes(*product.shape)
        codes = product.name
        return self._node(OPERATOR, x, codes, codes + SCALES, name=name, domain=DOMAIN, **attributes)

    def _float32(self, x: str, name: str) -> str:
        return self._node("Cast", x, name=name, to=TensorProto.FLOAT)

    def _narrow(self, x: str, name: str) -> str:
        return self._node("Cast", x, name=name, to=self._type)

    def _node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        self._add(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _add(self, node: NodeProto) -> None:
        """Add a node; one that several ask for is there once."""
        assert self._nodes.setdefault(node.name, node) == node

    # --- constants, inputs, weights -----------------------------------------------------------------------------------

    def _scalar(self, name: str, value: int) -> None:
        self._constant(name, np.int64(value))

    def _integers(self, name: str, values: Sequence[int]) -> None:
        self._constant(name, np.asarray(values, np.int64))

    def _constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> None:
        """Add a constant; one that several need is there once."""
        constant = numpy_helper.from_array(np.asarray(value), name)
        assert self._constants.setdefault(name, constant) == constant

    def _caches(self, prefix: str) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info(prefix + name, self._type, self._cache_shape("batch"))
            for layer in range(self._model.layers)
            for name in cache_names(layer)
        ]

    def _adapter(self) -> list[ValueInfoProto]:
        if self._identity.lora_rank is None:
            return []
        return [
            helper.make_tensor_value_info(name, self._type, shape) for name, shape in lora_shapes(self._model).items()
        ]

    def _cache_shape(self, batch: int | str) -> list[int | str | None]:
        model, capacity = self._model, self._identity.capacity
        return [batch, model.kv_heads, "capacity" if capacity is None else capacity, model.head_dim]

    def _weight(self, place: Place) -> TensorProto:
        tensor = TensorProto(name=place.name, data_type=place.element_type, dims=place.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA_FILE), ("offset", place.offset), ("length", place.size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
