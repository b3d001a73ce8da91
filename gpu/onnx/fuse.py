"""A pass over an exported graph: the attention of each layer becomes one operator of ONNX Runtime's own.

`GroupQueryAttention` turns queries and keys, writes keys and values into the cache, and looks at as many of its
positions as each row has, where they lie. In the standard operators of an export each of these is a node, or several.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gpu.checkpoint.config import ModelConfig
from gpu.errors import ExportError
from gpu.onnx.codes import DOMAIN
from gpu.onnx.graph import cache_names, model_of
from gpu.onnx.identity import Identity
from gpu.printable import printable

_HEADS_OF = 8  # its heads have a multiple of so many numbers
_TURNS = 16  # and it turns those that have a multiple of so many; others are turned before
_JOINED = numpy_helper.from_array(np.array([0, 0, -1]), "joined")  # the shape of a token's heads, one after the other

_ONE_BEHIND = numpy_helper.from_array(np.array([0, 0, 0, 0, 1, 0]), "one_behind")  # of [batch, sequence, numbers]
_START, _BUT_ONE, _TOKENS = (
    numpy_helper.from_array(np.array([value]), name)
    for value, name in ((0, "start_of_tokens"), (-1, "but_one"), (1, "axis_of_tokens"))
)


def cannot_fuse(model: ModelConfig) -> str | None:
    """Say why the operator does not take this model's heads, or give None."""
    if model.head_dim % _HEADS_OF == 0:
        return None
    return f"its heads have {model.head_dim} numbers, and ONNX Runtime's own attention takes multiples of {_HEADS_OF}"


def fused(exported: ModelProto, model: ModelConfig, identity: Identity) -> ModelProto:
    """Give a copy of a graph in float32 in which one node a layer attends; every other node is that of the graph.

    It no longer takes `positions`, and `write_index` only where the operator does not turn. Instead it takes
    `last_position` [batch] int32, where each row's last token stands that is fed; `longest` [1] int32, how many
    positions the row with most of them has; and `cosine_table` and `sine_table` [capacity, head_dim / 2] float32, of
    the angles that a token at each position turns by. Several rows are fed a token each; several tokens are fed to one
    row.

    Raises
    ------
    ExportError
        If a node or constant that is left out is not as it was exported.
    """
    graph, written = exported.graph, model_of(model, identity).graph
    attention = {f"{_at(layer)}.joined": _attention(written, layer, model) for layer in range(model.layers)}
    nodes = [new for node in graph.node for new in attention.get(node.name, [node])]
    kept = _needed(nodes, [output.name for output in graph.output])
    read = {name for node in kept for name in node.input}
    _check_left_out(graph, written, {node.name for node in kept}, read)

    table: list[str | int | None] = ["capacity", model.head_dim // 2]
    inputs = [
        *graph.input,
        helper.make_tensor_value_info("last_position", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("longest", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("cosine_table", TensorProto.FLOAT, table),
        helper.make_tensor_value_info("sine_table", TensorProto.FLOAT, table),
    ]
    made = ModelProto()
    made.CopyFrom(exported)
    for field in ("node", "input", "initializer"):
        made.graph.ClearField(field)
    made.graph.node.extend(kept)
    made.graph.input.extend(part for part in inputs if part.name in read)
    made.graph.initializer.extend(part for part in (*graph.initializer, _JOINED) if part.name in read)
    if all(operators.domain != DOMAIN for operators in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


def lone_tokens_accompanied(graph: ModelProto) -> ModelProto:
    """Give a copy of a graph in which what an adapter adds is computed of a token of zeros behind each row's, too.

    ONNX Runtime multiplies a lone token by matrices that are inputs in another way than several, and rounds otherwise.
    """
    made, padded = ModelProto(), set[str]()
    made.CopyFrom(graph)
    made.graph.ClearField("node")
    for node in graph.graph.node:
        # The first product of the two reads what the linear layer reads, the second one gives what is added to it.
        if node.op_type == "MatMul" and node.name.startswith("lora_a."):
            x = f"{node.input[0]}.accompanied"
            if x not in padded:
                made.graph.node.append(helper.make_node("Pad", [node.input[0], _ONE_BEHIND.name], [x], name=x))
                padded.add(x)
            made.graph.node.append(helper.make_node("MatMul", [x, node.input[1]], node.output, name=node.name))
        elif node.op_type == "MatMul" and node.name.startswith("lora_b."):
            several = f"{node.name}.accompanied"
            cut = [several, _START.name, _BUT_ONE.name, _TOKENS.name]
            made.graph.node.append(helper.make_node("MatMul", node.input, [several], name=several))
            made.graph.node.append(helper.make_node("Slice", cut, node.output, name=node.name))
        else:
            made.graph.node.append(node)
    made.graph.initializer.extend([_ONE_BEHIND, _START, _BUT_ONE, _TOKENS])
    return made


def _at(layer: int) -> str:
    return f"model.layers.{layer}.self_attn"


def _attention(written: GraphProto, layer: int, model: ModelConfig) -> list[NodeProto]:
    """Make what gives a layer's tokens and caches, from its projections or what normalises them."""
    at, turns, added, taken = _at(layer), model.head_dim % _TURNS == 0, list[NodeProto](), list[str]()
    sources = {node.name: node.input[0] for node in written.node if node.name.startswith(at)}
    for part, heads in (("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads)):
        x = sources[f"{at}.{part}.heads"]  # [batch, sequence, heads, head_dim]
        if x == f"{at}.{part}.split":
            x = sources[x]
        else:
            added.append(helper.make_node("Reshape", [x, _JOINED.name], [f"{x}.joined"], name=f"{x}.joined"))
            x = f"{x}.joined"
        if part != "v" and not turns:
            inputs, x = [x, "cosine_table", "sine_table", "query_positions"], f"{at}.{part}.turned_by_table"
            added.append(helper.make_node("RotaryEmbedding", inputs, [x], name=x, num_heads=heads))
        taken.append(x)
    caches = cache_names(layer)
    tables = ["cosine_table", "sine_table"] if turns else []
    attention = helper.make_node(
        "GroupQueryAttention", [*taken, *caches, "last_position", "longest", *tables],
        [f"{at}.joined", *(f"present.{cache}" for cache in caches)], name=f"{at}.fused", domain=DOMAIN,
        num_heads=model.heads, kv_num_heads=model.kv_heads, do_rotary=int(turns),
    )  # fmt: skip
    return [*added, attention]


def _needed(nodes: Sequence[NodeProto], given: Iterable[str]) -> list[NodeProto]:
    """Leave out what gives nothing that is asked for; of nodes that give the same, the last one is taken."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    wanted, needed = list(given), set[int]()
    while wanted:
        index = makers.get(wanted.pop())
        if index is not None and index not in needed:
            needed.add(index)
            wanted += nodes[index].input
    return [nodes[index] for index in sorted(needed)]


def _check_left_out(graph: GraphProto, written: GraphProto, nodes: set[str], constants: set[str]) -> None:
    """See that all that the operator stands for is there, and is what it computes."""
    found, expected = (
        {part.name: part for part in of.node if part.name not in nodes}
        | {part.name: part for part in of.initializer if part.name not in constants}
        for of in (graph, written)
    )
    if changed := [name for name in {**expected, **found} if found.get(name) != expected.get(name)]:
        raise ExportError(
            f"its graph has {printable(changed[0])} otherwise than it was exported, and the operator that takes the "
            f"place of that computes nothing else"
        )
