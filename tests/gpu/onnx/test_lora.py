"""Graphs that take an adapter compute what a model does that has it merged; with none, what they would without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from adapters import Tensors, as_inputs, random_adapter, write_adapter, write_merged
from checkpoints import FAMILIES, write_checkpoint
from dequantised import dequantised
from onnx.reference import ReferenceEvaluator

from gpu import Adapter, Checkpoint, ModelConfig, OnnxEngine, OptionError, load_engine, model_fingerprint
from gpu.onnx import runtime
from gpu.onnx.cached import cached_export
from gpu.onnx.data import item_type
from gpu.onnx.export import check_export, export
from gpu.onnx.identity import DTYPES
from gpu.onnx.lora import lora_shapes, no_adapter
from gpu.onnx.products import products

pytestmark = pytest.mark.slow

EVALUATOR = tuple(map(int, onnx.__version__.split(".")[:2]))
MOST, CAPACITY = 16, 24
PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]
STEPS = [(8, 9), (10, 11), (12, 13)]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "one_kv_head": ("qwen3", {"num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 37}),
}
Run = Callable[[Tensors], list[np.ndarray]]


def exported(checkpoint: Path, target: Path, **options: Any) -> Path:
    model = ModelConfig.from_folder(checkpoint)
    export(Checkpoint.open(checkpoint, model), model, target, **({"lora_rank": MOST} | options))
    return target


def opened(folder: Path) -> Run:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def logits_of(run: Run, model: ModelConfig, adapter: Tensors, dtype: str = "float32") -> np.ndarray:
    """Of both prompts, the shorter one padded, and of steps of both rows after them."""
    ids = np.zeros((2, 5), np.int32)
    for row, prompt in enumerate(PROMPTS):
        ids[row, : len(prompt)] = prompt
    lengths, index = np.array([5, 2], np.int32), np.zeros(2, np.int64)
    names = [f"kv_cache.{layer}.{kind}" for layer in range(model.layers) for kind in ("keys", "values")]
    caches = [np.zeros((2, model.kv_heads, CAPACITY, model.head_dim), item_type(dtype)) for _ in names]
    found = []
    for step in (ids, *(np.array(tokens, np.int32)[:, None] for tokens in STEPS)):
        feed = {"input_ids": step, "input_lengths": lengths, "write_index": index, "positions": np.arange(CAPACITY)}
        [logits, *caches] = run(feed | dict(zip(names, caches, strict=True)) | adapter)
        found.append(logits)
        index, lengths = index + lengths, np.ones(2, np.int32)
    return np.stack(found)


def reference(folder: Path) -> np.ndarray:
    with load_engine(folder, "numpy", max_batch=2, capacity=CAPACITY) as engine:
        rows = engine.kv_cache.acquire(2)
        for row, prompt in zip(rows, PROMPTS, strict=True):
            engine.write_prompt(row, prompt)
        engine.prefill(rows)
        found = [np.stack([engine.read_logits(row) for row in rows])]
        for tokens in STEPS:
            for row, token in zip(rows, tokens, strict=True):
                engine.write_token(row, token)
            engine.decode(rows)
            found.append(np.stack([engine.read_logits(row) for row in rows]))
        return np.stack(found)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_of_any_rank_gives_the_logits_of_merged_weights(tmp_path: Path, shape: str) -> None:
    family, fields = SHAPES[shape]
    folder = write_checkpoint(tmp_path / "checkpoint", family, **fields)
    model = ModelConfig.from_folder(folder)
    run = opened(exported(folder, tmp_path / "export"))
    without = reference(folder)
    np.testing.assert_allclose(logits_of(run, model, no_adapter(model)), without, atol=5e-5)
    for rank in (1, 4, MOST):
        adapter = random_adapter(model, rank, seed=rank)
        merged = reference(write_merged(folder, tmp_path / f"merged-{rank}", adapter))
        np.testing.assert_allclose(logits_of(run, model, as_inputs(adapter)), merged, atol=5e-5)
        assert np.std(merged - without) > 0.3 * np.std(without)


@pytest.mark.parametrize("linear", ["self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_each_matrix_goes_where_its_name_says(tmp_path: Path, linear: str) -> None:
    """An adapter of one linear layer of one layer, beside zeros of its rank."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    model = ModelConfig.from_folder(folder)
    adapter = random_adapter(model, 4)
    for name, values in adapter.items():
        if f"layers.1.{linear}." not in name:
            values[:] = 0
    found = logits_of(opened(exported(folder, tmp_path / "export")), model, as_inputs(adapter))
    np.testing.assert_allclose(found, reference(write_merged(folder, tmp_path / "merged", adapter)), atol=5e-5)
    assert np.abs(found - reference(folder)).max() > 1e-3


@pytest.mark.skipif(EVALUATOR < (1, 23), reason="the evaluator of this onnx does not know all operators in bfloat16")
@pytest.mark.parametrize(("dtype", "near"), [("float16", 0.02), ("bfloat16", 0.15)])
def test_every_dtype_computes_it_in_the_evaluator_of_onnx(tmp_path: Path, dtype: str, near: float) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", "qwen2")
    model = ModelConfig.from_folder(folder)
    evaluator = ReferenceEvaluator(str(exported(folder, tmp_path / "export", dtype=dtype) / "model.onnx"))
    adapter = random_adapter(model, 4)

    def run(feed: Tensors) -> list[np.ndarray]:
        return [*evaluator.run(None, feed)]  # type: ignore[arg-type]

    found = logits_of(run, model, as_inputs(adapter, item_type(dtype)), dtype)
    np.testing.assert_allclose(found, reference(write_merged(folder, tmp_path / "merged", adapter)), atol=near)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_adapter_stands_on_quantised_weights(tmp_path: Path, family: str, quantize: str) -> None:
    """Compared with the numbers that the codes stand for, so that what is left is the rounding of activations."""
    folder = write_checkpoint(tmp_path / "checkpoint", family, vocab_size=193)
    model = ModelConfig.from_folder(folder)
    graph = exported(folder, tmp_path / "export", quantize=quantize)
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(graph / "model.onnx").graph.initializer
        if tensor.name.endswith((".weight", ".scales"))
    }
    weights = {
        part: dequantised(quantize, stored[product.name], stored[f"{product.name}.scales"], product.columns)[
            (first := product.first(part)) : first + rows
        ]
        for product in products(model).values()
        for part, rows in product.parts.items()
    }
    assert len(weights) == 7 * model.layers + 1
    adapter = random_adapter(model, 4)
    merged = reference(write_merged(folder, tmp_path / "merged", adapter, weights))
    plain, run = reference(folder), opened(graph)
    away = np.std(logits_of(run, model, as_inputs(adapter)) - merged) / np.std(merged)
    assert away < 0.03
    assert np.std(plain - merged) / np.std(merged) > 0.3


# --- rows together ----------------------------------------------------------------------------------------------------


def bits(folder: Path, graph: Path, quantize: str | None) -> list[bytes]:
    """The logits and caches of rows that go alone, together, and alone again."""
    with load_engine(folder, "onnx", max_batch=3, capacity=40, export=graph, quantize=quantize) as engine:
        rows = engine.kv_cache.acquire(3)
        found = []
        for row in rows:
            engine.write_prompt(row, [5, 6, 7 + row] * (row + 1))
        engine.prefill(rows)
        for groups in ([rows], [rows[1:], rows[:1]], [[row] for row in rows]):
            for row in rows:
                engine.write_token(row, 3 * row)
            for some in groups:
                engine.decode(some)
            found += [engine.read_logits(row) for row in rows]
        assert engine.facts() == {"batches": "up to 3 rows together"}
        found += [engine.export_kv(row, 0, engine.kv_cache.length(row)) for row in rows]
        return [(values + np.float32(0)).tobytes() for values in found]  # a zero has no sign then


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_engine_binds_no_adapter_and_computes_what_it_does_without(tmp_path: Path, quantize: str | None) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", "qwen2")
    plain = exported(folder, tmp_path / "plain", quantize=quantize, lora_rank=None)
    assert bits(folder, plain, quantize) == bits(
        folder, exported(folder, tmp_path / "lora", quantize=quantize), quantize
    )


def test_zeros_are_bound_once_in_one_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: dict[str, int] = {}

    def watched(act: runtime.Bind, name: str, array: np.ndarray) -> None:
        bound[name] = array.ctypes.data
        plain(act, name, array)

    plain = runtime.bind
    monkeypatch.setattr("gpu.onnx.engine.bind", watched)
    folder = write_checkpoint(tmp_path / "checkpoint")
    graph = exported(folder, tmp_path / "export")
    names = set(lora_shapes(ModelConfig.from_folder(folder)))
    with load_engine(folder, "onnx", max_batch=2, capacity=24, export=graph) as engine:
        rows = engine.kv_cache.acquire(2)
        engine.decode(rows)  # binds what neighbours have
        adapters = {name: address for name, address in bound.items() if name.startswith("lora_")}
        assert adapters.keys() == names
        assert len({*adapters.values()}) == 1
        bound.clear()
        for some in (rows, rows[:1], rows[1:]):
            engine.decode(some)
        assert not [name for name in bound if name.startswith("lora_")]


def test_the_environment_says_that_the_graph_takes_adapters(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    for rank, told in ((MOST, {"lora_rank": MOST}), (None, {})):
        graph = exported(folder, tmp_path / f"export-{rank}", lora_rank=rank)
        with load_engine(folder, "onnx", max_batch=1, capacity=24, export=graph) as engine:
            assert isinstance(engine, OnnxEngine)
            assert {key: value for key, value in engine.environment().items() if key == "lora_rank"} == told


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_is_standard_and_says_what_it_takes(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    target = exported(folder, tmp_path / "export", dtype=dtype, capacity=24)
    onnx.checker.check_model(str(target / "model.onnx"), full_check=True)
    graph = onnx.load(target / "model.onnx", load_external_data=False)
    taken = {
        entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        for entry in graph.graph.input
    }
    projections = {
        "q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32), "gate_proj": (48, 32),
        "up_proj": (48, 32), "down_proj": (32, 48),
    }  # fmt: skip
    expected: dict[str, list[Any]] = {}
    for layer in range(2):
        for projection, (outputs, inputs) in projections.items():
            expected[f"lora_a.{layer}.{projection}"] = ["rank", inputs]
            expected[f"lora_b.{layer}.{projection}"] = [outputs, "rank"]
    assert [*taken.items()][4 + 2 * 2 :] == [*expected.items()]
    caches = {entry.type.tensor_type.elem_type for entry in graph.graph.input if entry.name.startswith("kv_cache")}
    assert caches == {entry.type.tensor_type.elem_type for entry in graph.graph.input if entry.name in expected}
    assert {"phasewalk.lora_rank": "16"}.items() <= {entry.key: entry.value for entry in graph.metadata_props}.items()
    found = check_export(target, ModelConfig.from_folder(folder), model_fingerprint(folder)).identity
    assert found.lora_rank == MOST


def test_without_the_option_a_graph_knows_no_adapters(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    graphs = [
        onnx.load(exported(folder, tmp_path / f"{rank}", lora_rank=rank) / "model.onnx", load_external_data=False).graph
        for rank in (None, MOST)
    ]
    assert not [name for name in [*graphs[0].input, *graphs[0].node] if "lora" in name.name]
    added = 7 * 2 * 5  # two products, of matrices that are turned, and a sum
    assert len(graphs[1].node) == len(graphs[0].node) + added
    plain, taking = (tmp_path / f"{rank}" / "weights.bin" for rank in (None, MOST))
    assert plain.read_bytes() == taking.read_bytes()


def test_an_export_with_adapters_in_the_place_of_one_that_was_kept_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_checkpoint(tmp_path / "checkpoint")
    model = ModelConfig.from_folder(folder)
    kept = cached_export(Checkpoint.open(folder, model), model).folder
    kept.rename(tmp_path / "aside")
    exported(folder, kept)
    assert cached_export(Checkpoint.open(folder, model), model).folder == kept
    assert check_export(kept, model, model_fingerprint(folder)).identity.lora_rank is None


# --- the engine -------------------------------------------------------------------------------------------------------


def read(folder: Path, base: Path, rank: int) -> Adapter:
    model = ModelConfig.from_folder(base)
    return Adapter.read(write_adapter(folder, random_adapter(model, rank)), model)


def test_rows_of_one_adapter_decode_together(tmp_path: Path) -> None:
    """As a lone token is multiplied as several are: see `lone_tokens_accompanied`."""
    base = write_checkpoint(tmp_path / "base", hidden_size=192, intermediate_size=512, head_dim=32, vocab_size=1536)
    with load_engine(base, "onnx", max_batch=8, capacity=32, adapters=1) as engine:
        engine.load_adapter("one", read(tmp_path / "adapter", base, 8))
        rows = engine.kv_cache.acquire(8)
        for row in rows:
            engine.set_adapter(row, "one")
            engine.write_prompt(row, [1, 2, 3 + row])
        engine.prefill(rows)
        for _ in range(3):
            engine.decode(rows)
        assert engine.facts()["batches"] == "up to 8 rows together"


def test_an_export_that_takes_no_such_adapters_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    without, small = exported(checkpoint, tmp_path / "without", lora_rank=None), tmp_path / "small"
    exported(checkpoint, small, lora_rank=4)
    with pytest.raises(OptionError, match="the export takes no adapters: export the checkpoint with --lora-rank 8"):
        load_engine(checkpoint, "onnx", export=without, adapters=1, max_lora_rank=8)
    with pytest.raises(OptionError, match="adapters of rank 4 at most: load it with max_lora_rank=4, or export"):
        load_engine(checkpoint, "onnx", export=small, adapters=1, max_lora_rank=8)
    with load_engine(checkpoint, "onnx", export=small, adapters=1) as engine:
        assert engine.max_lora_rank == 4
