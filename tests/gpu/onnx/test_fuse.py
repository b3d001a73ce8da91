"""The engine runs the graph of the exported file: what attends in it becomes one operator, all else stays as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import FAMILIES, write_checkpoint

from gpu import Checkpoint, ExportError, ModelConfig, load_engine
from gpu.checkpoint.fingerprint import fingerprint
from gpu.onnx.codes import CODES
from gpu.onnx.export import export, read_export
from gpu.onnx.fuse import fused
from gpu.onnx.graph import seal

pytestmark = pytest.mark.slow

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
CAPACITY = 16
ATTENDED = "model.layers.1.self_attn.attended"
Change = Callable[[onnx.ModelProto], object]


def exported(tmp_path: Path, family: str = "qwen3", *, quantize: str | None = None, **fields: Any) -> tuple[Path, Path]:
    folder = write_checkpoint(tmp_path / "checkpoint", family, **fields)
    model = ModelConfig.from_folder(folder)
    export(Checkpoint.open(folder, model), model, tmp_path / "export", quantize=quantize)
    return folder, tmp_path / "export"


def sealed_again(folder: Path, change: Change) -> None:
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    change(graph)
    seal(graph)
    path.write_bytes(graph.SerializeToString())


def by_the_engine(checkpoint: Path, folder: Path, quantize: str | None = None) -> np.ndarray:
    with load_engine(checkpoint, "onnx", max_batch=1, capacity=CAPACITY, export=folder, quantize=quantize) as engine:  # type: ignore[attr-defined]
        [row] = engine.kv_cache.acquire(1)
        engine.write_prompt(row, PROMPT[:-1])
        engine.prefill([row])
        engine.write_token(row, PROMPT[-1])
        engine.decode([row])
        return engine.read_logits(row)


def by_the_file(folder: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    feed: dict[str, np.ndarray] = {
        "input_ids": np.array([PROMPT], np.int32),
        "input_lengths": np.full(1, len(PROMPT), np.int32),
        "write_index": np.zeros(1, np.int64),
        "positions": np.arange(len(PROMPT)),
    }
    for entry in session.get_inputs()[len(feed) :]:
        feed[entry.name] = np.zeros((1, entry.shape[1], CAPACITY, entry.shape[3]), np.float32)
    [logits] = session.run(["logits"], feed)
    return logits[0]


def node_of(graph: onnx.ModelProto, name: str) -> onnx.NodeProto:
    [found] = [node for node in graph.graph.node if node.name == name]
    return found


def with_another_norm(graph: onnx.ModelProto) -> None:
    node_of(graph, "model.layers.1.self_attn.q_norm.normed").attribute[1].f = 0.5


def with_a_node_more(graph: onnx.ModelProto) -> None:
    """Logits are scaled by what stands in the graph."""
    node_of(graph, "logits").input[0] = "scaled"
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    at = [node.name for node in graph.graph.node].index("logits")
    graph.graph.node.insert(at, onnx.helper.make_node("Mul", ["projected", "half"], ["scaled"], name="scaled"))


@pytest.mark.parametrize("head_dim", [6, 8, 16])
@pytest.mark.parametrize("change", [with_another_norm, with_a_node_more])
def test_a_node_that_the_file_has_is_computed(tmp_path: Path, head_dim: int, change: Change) -> None:
    checkpoint, folder = exported(tmp_path, head_dim=head_dim)
    before = by_the_engine(checkpoint, folder)
    np.testing.assert_allclose(before, by_the_file(folder), atol=2e-5)
    sealed_again(folder, change)
    after = by_the_engine(checkpoint, folder)
    np.testing.assert_allclose(after, by_the_file(folder), atol=2e-5)
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.self_attn.q_norm.weight"])
def test_a_weight_that_the_file_has_is_computed(tmp_path: Path, name: str) -> None:
    checkpoint, folder = exported(tmp_path, head_dim=16)
    before = by_the_engine(checkpoint, folder)
    data = folder / "weights.bin"

    def change(graph: onnx.ModelProto) -> None:
        [weight] = [tensor for tensor in graph.graph.initializer if tensor.name == name]
        place = {entry.key: int(entry.value) for entry in weight.external_data if entry.key != "location"}
        with data.open("r+b") as file:
            file.seek(place["offset"])
            numbers = np.frombuffer(file.read(place["length"]), np.float32)
            file.seek(place["offset"])
            file.write((3 * numbers).tobytes())
        metadata = {entry.key: entry.value for entry in graph.metadata_props}
        onnx.helper.set_model_props(graph, metadata | {"phasewalk.weights": fingerprint([data])})

    sealed_again(folder, change)
    after = by_the_engine(checkpoint, folder)
    np.testing.assert_allclose(after, by_the_file(folder), atol=2e-5)
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("quantize", [None, *CODES])
@pytest.mark.parametrize("head_dim", [8, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_is_left_is_that_of_the_file_byte_by_byte(
    tmp_path: Path, family: str, head_dim: int, quantize: str | None
) -> None:
    checkpoint, folder = exported(tmp_path, family, head_dim=head_dim, quantize=quantize)
    model = ModelConfig.from_folder(checkpoint)
    found = read_export(folder)
    graph = fused(found.graph, model, found.identity).graph
    assert (
        found.graph.SerializeToString()
        == onnx.load(folder / "model.onnx", load_external_data=False).SerializeToString()
    )

    of_the_file = [node.SerializeToString() for node in found.graph.graph.node]
    kept = [node for node in graph.node if node.SerializeToString() in of_the_file]
    assert [of_the_file.index(node.SerializeToString()) for node in kept] == sorted(
        of_the_file.index(node.SerializeToString()) for node in kept
    )
    added = [node.op_type for node in graph.node if node.SerializeToString() not in of_the_file]
    of_a_layer = ["Reshape"] * (2 * model.qk_norm) + ["RotaryEmbedding"] * (2 * (head_dim == 8))
    assert sorted(added) == sorted(model.layers * [*of_a_layer, "GroupQueryAttention"])
    left_out = {node.op_type for node in found.graph.graph.node} - {node.op_type for node in graph.node}
    assert {"TensorScatter", "Attention", "LessOrEqual"} <= left_out
    linear = [node for node in found.graph.graph.node if node.op_type in ("MatMul", "MatMulNBits", "RMSNormalization")]
    assert linear
    assert all(node in kept for node in linear)

    stored = {tensor.name: tensor for tensor in found.graph.graph.initializer}
    data = [tensor.name for tensor in stored.values() if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert {*data} <= {tensor.name for tensor in graph.initializer}
    assert [tensor.name for tensor in graph.initializer if stored.get(tensor.name) != tensor] == [
        "joined"
    ] * model.qk_norm
    assert graph.output == found.graph.graph.output
    assert "positions" not in [entry.name for entry in graph.input]


def attribute(name: str, changed: str, value: object) -> Change:
    def change(graph: onnx.ModelProto) -> None:
        node_of(graph, name).attribute.append(onnx.helper.make_attribute(changed, value))

    return change


def with_other_angles(graph: onnx.ModelProto) -> None:
    [frequencies] = [tensor for tensor in graph.graph.initializer if tensor.name == "frequencies"]
    frequencies.raw_data = bytes(reversed(frequencies.raw_data))


def with_a_node_between(graph: onnx.ModelProto) -> None:
    node_of(graph, ATTENDED).input[0] = "between"
    at = [node.name for node in graph.graph.node].index(ATTENDED)
    between = onnx.helper.make_node("Cast", ["model.layers.1.self_attn.q.rotated"], ["between"], name="between", to=1)
    graph.graph.node.insert(at, between)


def without_joined(graph: onnx.ModelProto) -> None:
    joined = node_of(graph, "model.layers.1.self_attn.joined")
    joined.name = "elsewhere"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (attribute(ATTENDED, "scale", 0.5), ATTENDED),
        (attribute("mask", "note", 1), "mask"),
        (attribute("model.layers.0.self_attn.k.turned", "interleaved", 1), "model.layers.0.self_attn.k.turned"),
        (attribute("present.kv_cache.1.values", "mode", "circular"), "present.kv_cache.1.values"),
        (with_other_angles, "frequencies"),
        (with_a_node_between, ATTENDED),
        (without_joined, "model.layers.1.self_attn.joined"),
    ],
)
def test_what_the_operator_would_compute_otherwise_is_refused_by_name(
    tmp_path: Path, change: Change, name: str
) -> None:
    checkpoint, folder = exported(tmp_path, "llama", head_dim=16)
    sealed_again(folder, change)
    with pytest.raises(ExportError) as refused:
        by_the_engine(checkpoint, folder)
    assert str(refused.value).startswith(f"{folder} cannot be used: ")
    assert str(refused.value).endswith("export the checkpoint again")
    assert f"its graph has {name} otherwise than it was exported" in str(refused.value)
