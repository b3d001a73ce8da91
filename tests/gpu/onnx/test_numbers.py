"""The graph computes what the NumPy engine does, for every family, every rope type and every shape of heads."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoints import FAMILIES, write_checkpoint

from gpu import Checkpoint, Engine, ModelConfig, choose_engine, load_engine
from gpu.onnx.cached import cached_export
from gpu.onnx.codes import CODES
from gpu.onnx.graph import cache_names

pytestmark = pytest.mark.slow

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": YARN,
    "yarn_in_full": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 16.0, "truncate": False},
    "yarn_attention_factor": YARN | {"attention_factor": 1.3},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "one_kv_head": {"num_key_value_heads": 1},
    "all_kv_heads": {"num_key_value_heads": 4},
    "wide_heads": {"head_dim": 32},
    "odd_sizes": {"head_dim": 24, "vocab_size": 101, "intermediate_size": 37},
    "heads_of_80": {"head_dim": 80},
    "heads_of_6": {"head_dim": 6},
    "one_layer": {"num_hidden_layers": 1, "rms_norm_eps": 1e-3},
}
CASES = [
    *((family, {"rope_parameters": rope}, f"{family}-{name}") for family in FAMILIES for name, rope in ROPES.items()),
    *((family, shape, f"{family}-{name}") for family in FAMILIES for name, shape in SHAPES.items()),
    ("llama", {"attention_bias": True, "mlp_bias": True}, "llama-biases"),
    ("llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 24}, "llama-bias-tied"),
    ("qwen3", {"attention_bias": True}, "qwen3-bias"),
    ("mistral", {"sliding_window": 128}, "mistral-window"),
]


def logits_of(engine: Engine, prompts: list[list[int]], steps: int) -> list[np.ndarray]:
    """The logits of rows that decode together, after prefill and after each step, fed by tokens that are all alike."""
    rows = engine.kv_cache.acquire(len(prompts))
    for row, prompt in zip(rows, prompts, strict=True):
        engine.write_prompt(row, prompt)
    engine.prefill(rows)
    found = [engine.read_logits(row) for row in rows]
    for step in range(steps):
        for row in rows:
            engine.write_token(row, (step * 31 + row) % engine.model.vocab)
        engine.decode(rows)
        found += [engine.read_logits(row) for row in rows]
    return found


@pytest.mark.parametrize(("family", "fields"), [case[:2] for case in CASES], ids=[name for _, _, name in CASES])
def test_logits_and_cache_agree_with_the_reference(tmp_path: Path, family: str, fields: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path, family, **fields)
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 97, length).tolist() for length in (70, 1, 9)]
    found, caches = [], []
    for name in ("numpy", "onnx"):
        with load_engine(folder, name, max_batch=3, capacity=128) as engine:  # type: ignore[attr-defined]
            found.append(logits_of(engine, prompts, 8))
            caches.append([engine.export_kv(row, 0, engine.kv_cache.length(row)) for row in range(3)])
    for expected, logits in zip(*found, strict=True):
        np.testing.assert_allclose(logits, expected, atol=5e-5)
    for expected, cache in zip(*caches, strict=True):
        np.testing.assert_allclose(cache, expected, atol=5e-5)
    assert np.std(found[0]) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ["llama3", "yarn_attention_factor"])
def test_the_engine_computes_what_the_exported_graph_does(tmp_path: Path, family: str, rope: str) -> None:
    folder = write_checkpoint(tmp_path, family, rope_parameters=ROPES[rope])
    model = ModelConfig.from_folder(folder)
    graph = cached_export(Checkpoint.open(folder, model), model).folder / "model.onnx"
    exported = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    prompt = np.random.default_rng(1).integers(0, 97, (1, 40)).astype(np.int32)
    feed = {"input_ids": prompt, "input_lengths": np.full(1, 40, np.int32), "write_index": np.zeros(1, np.int64)}
    feed |= {"positions": np.arange(40)}
    cache = np.zeros((1, model.kv_heads, 64, model.head_dim), np.float32)
    feed |= {name: cache for layer in range(model.layers) for name in cache_names(layer)}
    logits, keys, values = exported.run(["logits", *(f"present.{name}" for name in cache_names(1))], feed)
    with load_engine(folder, "onnx", max_batch=1, capacity=64) as engine:
        [row] = engine.kv_cache.acquire(1)
        engine.write_prompt(row, prompt[0].tolist())
        engine.prefill([row])
        np.testing.assert_allclose(engine.read_logits(row), logits[0], atol=2e-5)
        written = engine.export_kv(row, 0, 40)[1]
        np.testing.assert_allclose(written, np.stack([keys[0, :, :40], values[0, :, :40]]), atol=2e-5)
    assert np.std(logits) > 0.1


def test_angles_of_far_positions_agree(tmp_path: Path) -> None:
    """Where one unit in the last place of an angle would show."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=40_000, num_hidden_layers=1)
    found = []
    for name in ("numpy", "onnx"):
        with load_engine(folder, name, max_batch=1, capacity=40_000) as engine:  # type: ignore[attr-defined]
            [row] = engine.kv_cache.acquire(1)
            engine.import_kv(row, 0, np.zeros_like(engine.export_kv(row, 0, 39_990)))
            engine.kv_cache.commit(row, 39_990)
            engine.write_prompt(row, [5, 6, 7, 8])
            engine.prefill([row])
            found.append(engine.export_kv(row, 39_990, 39_994))
    np.testing.assert_allclose(found[1], found[0], atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_stored_dtypes_and_shards_agree(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = write_checkpoint(tmp_path, "qwen3", dtype=dtype, shards=shards)
    found = []
    for name in ("numpy", "onnx"):
        with load_engine(folder, name, max_batch=2, capacity=32) as engine:  # type: ignore[attr-defined]
            found.append(logits_of(engine, [[1, 2, 3], [4]], 3))
    for expected, logits in zip(*found, strict=True):
        np.testing.assert_allclose(logits, expected, atol=5e-5)


@pytest.mark.parametrize("quantize", [None, *CODES])
def test_heads_that_the_operator_does_not_take_run_as_they_were_exported(tmp_path: Path, quantize: str | None) -> None:
    folder = write_checkpoint(tmp_path, "qwen3", head_dim=6)
    found = []
    for company in ([0, 1, 2], [1]):
        with load_engine(folder, "onnx", max_batch=3, capacity=64, quantize=quantize) as engine:  # type: ignore[attr-defined]
            engine.buffers.kv_cache.fill(np.nan)  # what no token has counts for nothing
            engine.kv_cache.acquire(3)
            for row in company:
                engine.write_prompt(row, range(20 * row + 1))
            engine.prefill(company)
            found.append([engine.read_logits(1)])
            for token in range(5):
                for row in company:
                    engine.write_token(row, token + row)
                engine.decode(company)
                found[-1].append(engine.read_logits(1))
            assert engine.environment()["attention"] == "as exported"
            why = "its heads have 6 numbers, and ONNX Runtime's own attention takes multiples of 8"
            assert engine.facts() == {"batches": f"one row after the other: {why}"}
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(*found)


def test_the_choice_passes_over_heads_that_the_operator_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    large = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4}
    choice = choose_engine(write_checkpoint(tmp_path / "odd", head_dim=6, **large))
    assert (choice.name != "onnx", "not onnx: its heads have 6 numbers" in choice.why) == (True, choice.name == "numpy")
    assert not (tmp_path / "cache").exists()
