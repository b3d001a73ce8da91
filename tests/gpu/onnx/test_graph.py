"""The exported file is standard, checked by ONNX itself, of every dtype, and right where prompts are padded."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import FAMILIES, random_tensors, write_checkpoint, write_safetensors
from onnx.helper import get_attribute_value
from onnx.reference import ReferenceEvaluator

from gpu import Checkpoint, ExportError, ModelConfig, load_engine, model_fingerprint
from gpu.onnx.data import item_type
from gpu.onnx.export import check_export, export
from gpu.onnx.graph import model_of
from gpu.onnx.identity import DTYPES, FORMAT, Identity

pytestmark = pytest.mark.slow

EVALUATOR = tuple(map(int, onnx.__version__.split(".")[:2]))
CAPACITY = 16
PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]
Feed = dict[str, np.ndarray]


def exported(checkpoint: Path, target: Path, **options: object) -> Path:
    model = ModelConfig.from_folder(checkpoint)
    export(Checkpoint.open(checkpoint, model), model, target, **options)  # type: ignore[arg-type]
    return target


def padded(model: ModelConfig, dtype: str) -> Feed:
    """Both prompts at once, the shorter one padded, over a whole cache that is looked at in full."""
    feed: Feed = {
        "input_ids": np.array([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]], np.int32),
        "input_lengths": np.array([5, 2], np.int32),
        "write_index": np.zeros(2, np.int64),
        "positions": np.arange(CAPACITY),
    }
    cache = np.zeros((2, model.kv_heads, CAPACITY, model.head_dim), item_type(dtype))
    return feed | {f"kv_cache.{layer}.{kind}": cache for layer in range(model.layers) for kind in ("keys", "values")}


def reference(folder: Path) -> np.ndarray:
    with load_engine(folder, "numpy", max_batch=2, capacity=CAPACITY) as engine:  # type: ignore[attr-defined]
        rows = engine.kv_cache.acquire(2)
        for row in rows:
            engine.write_prompt(row, PROMPTS[row])
        engine.prefill(rows)
        return np.stack([engine.read_logits(row) for row in rows])


@pytest.mark.skipif(EVALUATOR < (1, 23), reason="the evaluator of this onnx does not know all operators in bfloat16")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 0.01), ("bfloat16", 0.1)])
def test_every_dtype_computes_the_model_in_the_evaluator_of_onnx(
    tmp_path: Path, family: str, dtype: str, near: float
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", family)
    graph = exported(folder, tmp_path / "export", dtype=dtype, capacity=CAPACITY, max_batch=2) / "model.onnx"
    [logits, *caches] = ReferenceEvaluator(str(graph)).run(None, padded(ModelConfig.from_folder(folder), dtype))
    assert logits.dtype == np.float32
    assert {cache.dtype for cache in caches} == {item_type(dtype)}
    np.testing.assert_allclose(logits, reference(folder), atol=near)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 0.01)])  # it has no product in bfloat16
def test_prompts_that_are_padded_to_one_length_are_right_in_onnx_runtime(
    tmp_path: Path, family: str, dtype: str, near: float
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", family)
    graph = exported(folder, tmp_path / "export", dtype=dtype, capacity=CAPACITY, max_batch=2) / "model.onnx"
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], padded(ModelConfig.from_folder(folder), dtype))
    np.testing.assert_allclose(logits, reference(folder), atol=near)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_is_standard_and_says_what_it_is(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", "qwen2", attention_bias=None, shards=2)
    target = exported(folder, tmp_path / "export", dtype=dtype, capacity=48, max_batch=4)
    assert sorted(path.name for path in target.iterdir()) == ["model.onnx", "weights.bin"]
    onnx.checker.check_model(str(target / "model.onnx"), full_check=True)
    graph = onnx.load(target / "model.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 24)]
    assert {node.domain for node in graph.graph.node} == {""}
    assert {"TensorScatter", "Attention", "RotaryEmbedding", "RMSNormalization"} <= {
        node.op_type for node in graph.graph.node
    }
    caches = [f"kv_cache.{layer}.{kind}" for layer in range(2) for kind in ("keys", "values")]
    assert [value.name for value in graph.graph.input] == [
        "input_ids", "input_lengths", "write_index", "positions", *caches,
    ]  # fmt: skip
    assert [value.name for value in graph.graph.output] == ["logits", *(f"present.{name}" for name in caches)]
    shape = graph.graph.input[-1].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["batch", 2, 48, 8]
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert metadata.pop("phasewalk.weights")
    assert metadata.pop("phasewalk.graph")
    assert metadata == {
        "phasewalk.format": "6", "phasewalk.fingerprint": model_fingerprint(folder), "phasewalk.dtype": dtype,
        "phasewalk.capacity": "48", "phasewalk.max_batch": "4", "phasewalk.quantize": "none",
        "phasewalk.lora_rank": "none",
    }  # fmt: skip
    found = check_export(target, ModelConfig.from_folder(folder), model_fingerprint(folder)).identity
    assert (found.dtype, found.capacity, found.max_batch) == (dtype, 48, 4)


def test_another_graph_has_another_format(tmp_path: Path) -> None:
    """An export that was kept is believed by its format: who changes the graph changes `gpu.onnx.identity.FORMAT`."""
    digest = hashlib.sha256()
    for family, quantize, lora_rank in (("qwen3", None, None), ("qwen2", "int8", 4), ("llama", "int4", None)):
        model = ModelConfig.from_folder(write_checkpoint(tmp_path / family, family, attention_bias=None))
        graph = model_of(model, Identity("", quantize=quantize, lora_rank=lora_rank)).graph
        for node in graph.node:
            attributes = sorted((entry.name, get_attribute_value(entry)) for entry in node.attribute)
            digest.update(repr((node.op_type, [*node.input], [*node.output], attributes)).encode())
        for tensor in graph.initializer:
            where = sorted((entry.key, entry.value) for entry in tensor.external_data)
            digest.update(repr((tensor.name, [*tensor.dims], tensor.data_type, tensor.raw_data, where)).encode())
    assert (FORMAT, digest.hexdigest()[:16]) == (6, "3580d5ff43bfaaf6")


def test_the_data_are_the_tensors_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", dtype="bfloat16")
    graph = onnx.load(exported(folder, tmp_path / "export", dtype="bfloat16") / "model.onnx")
    checkpoint = Checkpoint.open(folder, ModelConfig.from_folder(folder))
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name in checkpoint.entries:
        found = onnx.numpy_helper.to_array(stored[name]).astype(np.float32)
        assert np.array_equal(found.T if "_proj" in name else found, checkpoint.read(name)), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "no dtype int3: expected one of float32, bfloat16, float16"),
        ({"capacity": 0}, "capacity is 0, expected at least 1"),
        ({"max_batch": 0}, "max_batch is 0, expected at least 1"),
        ({"lora_rank": 0}, "lora_rank is 0, expected at least 1"),
        ({"lora_rank": -3}, "lora_rank is -3, expected at least 1"),
        ({"lora_rank": 33}, "lora_rank of 33 was asked for, no change of this model's matrices has a rank above 32"),
        ({"lora_rank": 10**90}, r"lora_rank of 10+ \.\.\. \(91 characters\) was asked for"),
        ({"capacity": 129}, "capacity of 129 was asked for, the model has 128 positions"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_left(tmp_path: Path, options: dict[str, object], message: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match=message):
        exported(folder, tmp_path / "export", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_numbers_that_float16_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    tensors = random_tensors(ModelConfig.from_folder(folder))
    tensors["model.norm.weight"][3] = 70_000
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(ExportError, match=r"model\.norm\.weight holds numbers above 65504"):
        exported(folder, tmp_path / "export", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    exported(folder, tmp_path / "export", dtype="bfloat16")


def test_an_identity_reads_back() -> None:
    for identity in (Identity("f"), Identity("f", "float16", 5, 6, "w"), Identity("f", quantize="int4", lora_rank=7)):
        assert Identity.of(identity.metadata()) == identity
