"""Past and present cache are one memory: by their addresses, by what is touched, and by what a step costs."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

from gpu import Checkpoint, ModelConfig, OnnxEngine, load_engine
from gpu.onnx import runtime
from gpu.onnx.cached import cached_export
from gpu.onnx.codes import CODES

pytestmark = pytest.mark.slow

RUN = """
import sys
from gpu import load_engine
quantize = None if sys.argv[2] == "none" else sys.argv[2]
with load_engine(sys.argv[1], "onnx", max_batch=4, capacity=64, quantize=quantize) as engine:
    rows = engine.kv_cache.acquire(3)
    for row in rows:
        engine.write_prompt(row, [1, 2, 3])
    engine.prefill(rows)
    for some in (rows, rows[1:], rows[:1], rows):
        engine.decode(some)
    assert engine.facts() == {"batches": "up to 4 rows together"}, engine.facts()
"""
COPIES = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feed = {"input_ids": np.ones((1, 1), np.int32), "input_lengths": np.ones(1, np.int32)}
feed |= {"write_index": np.zeros(1, np.int64), "positions": np.zeros(1, np.int64)}
feed |= {entry.name: np.zeros((1, 2, 8, 8), np.float32) for entry in session.get_inputs()[4:]}
session.run(None, feed)
"""


def said(code: str, *arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["none", *CODES])
def test_nothing_is_printed_when_rows_decode_together(checkpoint: Path, kind: str) -> None:
    assert said(RUN, checkpoint, kind) == ""


def test_nothing_is_printed_when_a_graph_runs_as_it_was_exported(tmp_path: Path) -> None:
    """So it does not copy the cache, though each of its writes is a node of its own."""
    why = "its heads have 6 numbers, and ONNX Runtime's own attention takes multiples of 8"
    alone = RUN.replace("up to 4 rows together", f"one row after the other: {why}")
    assert alone != RUN
    assert said(alone, write_checkpoint(tmp_path, head_dim=6), "none") == ""


def test_onnx_runtime_never_says_that_it_copies(checkpoint: Path) -> None:
    assert said(RUN, checkpoint, "none") == ""
    # It would have said so: memory that is not bound is copied.
    model = ModelConfig.from_folder(checkpoint)
    exported = cached_export(Checkpoint.open(checkpoint, model), model).folder
    assert "copying past_cache to present_cache" in said(COPIES, exported / "model.onnx")


def test_both_are_bound_at_the_address_of_the_buffer(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[tuple[str, int]] = []

    def watched(act: runtime.Bind, name: str, array: np.ndarray) -> None:
        bound.append((name, array.ctypes.data))
        plain(act, name, array)

    plain = runtime.bind
    monkeypatch.setattr(runtime, "bind", watched)
    monkeypatch.setattr("gpu.onnx.engine.bind", watched)
    with load_engine(checkpoint, "onnx", max_batch=3, capacity=32) as engine:  # type: ignore[attr-defined]
        assert isinstance(engine, OnnxEngine)
        rows = engine.kv_cache.acquire(3)
        once = sorted(entry for entry in bound if "kv_cache" in entry[0])
        cache = engine.buffers.kv_cache
        expected = [
            (f"{present}kv_cache.{layer}.{kind}", cache[layer, index, row].ctypes.data)
            for present in ("", "present.")
            for layer in range(2)
            for index, kind in enumerate(("keys", "values"))
            for row in range(3)
        ]
        assert once == sorted(2 * expected)  # for prompts, and for steps
        for row in rows:
            engine.write_prompt(row, [1, 2])
        bound.clear()
        engine.prefill(rows)
        assert [name for name, _ in bound] == ["input_ids"] * 3
        bound.clear()
        for _ in range(4):
            engine.decode(rows[:1])
        assert bound == []
        engine.decode(rows)
        assert sorted(entry for entry in bound if "kv_cache" in entry[0]) == sorted(expected[::3])  # of neighbours
        bound.clear()
        for _ in range(4):
            engine.decode(rows)
        assert bound == []


def test_a_step_costs_the_same_at_any_capacity(tmp_path: Path) -> None:
    """A copy of the larger cache would take a hundred times longer than the step."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=100_000, head_dim=64)
    engines = [load_engine(folder, "onnx", max_batch=2, capacity=capacity) for capacity in (512, 100_000)]
    best = [float("inf")] * 2
    for engine in engines:
        for row in engine.kv_cache.acquire(2):
            engine.write_prompt(row, range(60))
            engine.prefill([row])
    for _ in range(60):
        for index, engine in enumerate(engines):
            began = time.perf_counter()
            engine.decode([0])
            engine.decode([0, 1])
            best[index] = min(best[index], time.perf_counter() - began)
    for engine in engines:
        engine.close()
    assert best[1] < 3 * best[0], best
