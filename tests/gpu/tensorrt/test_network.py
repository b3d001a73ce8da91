"""What TensorRT's parser makes of an export, asked of the network that it made."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoints import FAMILIES

from gpu import ModelConfig
from gpu.onnx.identity import DTYPES

pytestmark = pytest.mark.usefixtures("builds_anywhere")

LAYERS, HEADS, HEAD_DIM, CAPACITY, ROWS = 2, 2, 8, 64, 2  # of the tiny checkpoints and their exports
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


class Parsed:
    """A network, and what must outlive it."""

    def __init__(self, export: Path) -> None:
        from gpu.onnx.export import read_export
        from gpu.tensorrt.library import Errors, trt
        from gpu.tensorrt.network import inputs, layers, outputs, parse

        self.errors = Errors()
        self.builder = trt.Builder(self.errors)
        self.network = self.builder.create_network(0)
        _, identity, graph = read_export(export)
        parse(self.network, graph, identity, export, self.errors)
        self.layers = list(layers(self.network))
        self.inputs, self.outputs = inputs(self.network), outputs(self.network)

    def kinds(self) -> Counter[str]:
        return Counter(layer.type.name for layer in self.layers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_attention_rotations_and_two_updates_of_the_cache(exported: Any, family: str, dtype: str) -> None:
    from gpu.tensorrt.library import trt

    parsed = Parsed(exported(family, dtype=dtype))
    kinds = parsed.kinds()
    assert parsed.errors.told == []
    assert kinds["KV_CACHE_UPDATE"] == 2 * LAYERS
    assert kinds["ROTARY_EMBEDDING"] == 2 * LAYERS
    assert kinds["ATTENTION_INPUT"] == kinds["ATTENTION_OUTPUT"] == LAYERS
    assert not {"SCATTER", "LOOP", "CONDITION", "PLUGIN", "PLUGIN_V2", "PLUGIN_V3", "NON_ZERO"} & set(kinds)
    assert parsed.network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_caches_of_a_layer_are_written_where_they_lie(exported: Any, dtype: str) -> None:
    from gpu.tensorrt.library import trt

    parsed = Parsed(exported("qwen3", dtype=dtype))
    number = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "bfloat16": trt.DataType.BF16}[dtype]
    updates = [layer for layer in parsed.layers if layer.type == trt.LayerType.KV_CACHE_UPDATE]
    names = [f"kv_cache.{layer}.{kind}" for layer in range(LAYERS) for kind in ("keys", "values")]
    assert [layer.get_input(0).name for layer in updates] == names
    assert [layer.get_output(0).name for layer in updates] == [f"present.{name}" for name in names]
    for layer in updates:
        layer.__class__ = trt.IKVCacheUpdateLayer  # the bindings give the base class
        assert layer.cache_mode == trt.KVCacheMode.LINEAR
        cache, update, write_index = (layer.get_input(index) for index in range(3))
        assert cache.is_network_input
        assert layer.get_output(0).is_network_output
        assert write_index.dtype == trt.int32  # the parser casts it, for every layer
        assert cache.dtype == update.dtype == layer.get_output(0).dtype == number
        assert tuple(cache.shape) == tuple(layer.get_output(0).shape) == (-1, HEADS, CAPACITY, HEAD_DIM)


def test_inputs_and_outputs_are_those_of_the_graph(exported: Any) -> None:
    from gpu.tensorrt.library import trt

    parsed = Parsed(exported())
    plain = {name: tensor for name, tensor in parsed.inputs.items() if not name.startswith("kv_cache.")}
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in plain.items()} == {
        "input_ids": (trt.int32, (-1, -1)), "input_lengths": (trt.int32, (-1,)),
        "write_index": (trt.int64, (-1,)), "positions": (trt.int64, (-1,)),
    }  # fmt: skip
    assert set(parsed.outputs) == {"logits", *(f"present.{name}" for name in parsed.inputs if name not in plain)}
    logits = parsed.outputs["logits"]
    assert (logits.dtype, tuple(logits.shape)) == (trt.float32, (-1, 97))
    assert not any(tensor.is_shape_tensor for tensor in parsed.inputs.values())  # nothing is read on the host


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapters_of_any_rank_go_in(exported: Any, family: str, dtype: str) -> None:
    from gpu.onnx.lora import RANK, lora_shapes
    from gpu.tensorrt.library import trt

    export = exported(family, dtype=dtype, lora_rank=8)
    parsed = Parsed(export)
    number = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "bfloat16": trt.DataType.BF16}[dtype]
    expected = lora_shapes(ModelConfig.from_folder(export.with_name("checkpoint")))
    assert {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in parsed.inputs.items() if name.startswith("lora_")
    } == {name: (number, tuple(-1 if size == RANK else size for size in shape)) for name, shape in expected.items()}
    assert parsed.kinds()["KV_CACHE_UPDATE"] == 2 * LAYERS
    assert parsed.errors.told == []


def test_attention_may_be_taken_apart_and_the_export_stays_standard(exported: Any) -> None:
    import onnx

    from gpu.onnx.export import read_export
    from gpu.tensorrt.network import as_it_parses

    graph = read_export(exported()).graph
    attributes = [
        {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        for node in as_it_parses(graph).graph.node
        if node.op_type == "Attention"
    ]
    assert attributes == [{"TRT_decomposable": 1}] * LAYERS
    assert not any(attribute.name.startswith("TRT_") for node in graph.graph.node for attribute in node.attribute)


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_is_plain_arithmetic_to_the_parser(exported: Any, rope: str) -> None:
    kinds = Parsed(exported(config={"rope_parameters": ROPES[rope]})).kinds()
    assert kinds["ROTARY_EMBEDDING"] == 2 * LAYERS


def test_tied_embeddings_and_biases_parse(exported: Any) -> None:
    config = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    assert Parsed(exported("llama", config=config)).kinds()["KV_CACHE_UPDATE"] == 2 * LAYERS


def test_one_profile_is_for_prefill_and_one_for_decode(exported: Any) -> None:
    from gpu.onnx.export import read_export
    from gpu.tensorrt.build import plan_identity, profiles

    export = exported()
    parsed = Parsed(export)
    plan = plan_identity(read_export(export).identity, ("sm89",))
    assert (plan.chunk, plan.max_batch, plan.capacity) == (CAPACITY, ROWS, CAPACITY)
    prefill, decode = profiles(parsed.builder, parsed.network, plan)

    def shapes(profile: Any, name: str) -> list[tuple[int, ...]]:
        return [tuple(dims) for dims in profile.get_shape(name)]

    assert shapes(prefill, "input_ids") == [(1, 1), (1, CAPACITY), (ROWS, CAPACITY)]
    assert shapes(decode, "input_ids") == [(1, 1), (ROWS, 1), (ROWS, 1)]
    for profile in (prefill, decode):
        assert shapes(profile, "positions") == [(1,), (CAPACITY,), (CAPACITY,)]
        for name in parsed.inputs.keys() - {"positions"}:
            assert {shapes(profile, name)[0][0], shapes(profile, name)[2][0]} == {1, ROWS}, name
        assert shapes(profile, "kv_cache.1.values")[0] == (1, HEADS, CAPACITY, HEAD_DIM)
        assert shapes(profile, "kv_cache.1.values")[2] == (ROWS, HEADS, CAPACITY, HEAD_DIM)


@pytest.mark.parametrize(("most", "ranks"), [(1, (1, 1, 1)), (8, (1, 8, 8)), (32, (1, 16, 32))])
def test_both_profiles_take_every_rank_up_to_that_of_the_export(
    exported: Any, most: int, ranks: tuple[int, ...]
) -> None:
    from gpu.onnx.export import read_export
    from gpu.tensorrt.build import plan_identity, profiles

    export = exported(lora_rank=most)
    parsed = Parsed(export)
    plan = plan_identity(read_export(export).identity, ("sm89",))
    assert plan.lora_rank == most
    made = [*profiles(parsed.builder, parsed.network, plan)]
    assert len(made) == 2
    for profile in made:
        for layer in range(LAYERS):
            a = profile.get_shape(f"lora_a.{layer}.down_proj")
            b = profile.get_shape(f"lora_b.{layer}.down_proj")
            assert [tuple(dims) for dims in a] == [(rank, 48) for rank in ranks]
            assert [tuple(dims) for dims in b] == [(32, rank) for rank in ranks]


def test_the_checkpoint_has_the_sizes_that_these_tests_name(exported: Any) -> None:
    model = ModelConfig.from_folder(exported().parent / "checkpoint")
    assert (model.layers, model.kv_heads, model.head_dim) == (LAYERS, HEADS, HEAD_DIM)
