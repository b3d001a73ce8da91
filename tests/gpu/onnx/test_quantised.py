"""Weights of 8 and 4 bits: what they are, how near they come, and that records and files of them are told apart."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from checkpoints import FAMILIES, write_checkpoint
from dequantised import dequantised

from gpu import Checkpoint, Engine, ModelConfig, OnnxEngine, OptionError, SelfCheckError, load_engine
from gpu.cuda.shape import Shape
from gpu.load import _ENGINES, _QUANTIZED
from gpu.onnx import data
from gpu.onnx.codes import CODES
from gpu.onnx.data import data_size
from gpu.onnx.export import export
from phases import Generator, JournalError, SamplingParams, SnapshotError
from phases.generator import DEMO_MODEL
from phases.replay import load_generator, replay
from statemachine import Journal

pytestmark = pytest.mark.slow

KINDS = pytest.mark.parametrize("kind", [*CODES])
GREEDY = SamplingParams(temperature=0, max_new_tokens=6, stop_token_ids=())


@KINDS
@pytest.mark.parametrize("shape", [(24, 256), (7, 37), (1, 1), (33, 64)])
def test_codes_stand_for_the_nearest_numbers(kind: str, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    matrix[0] = 0
    codes, scales = CODES[kind].of(matrix)
    assert (codes.shape, scales.shape) == CODES[kind].shapes(*shape)
    width = CODES[kind].block
    step = np.abs(np.repeat(scales, width, axis=1)[:, : shape[1]])
    away = np.abs(dequantised(kind, codes, scales, shape[1]) - matrix)
    assert (away <= 1.01 * step).all()  # a whole step only at one end, as there is one code more below zero than above
    assert np.mean(away <= 0.501 * step) > 0.9


def logits_of(engine: Engine) -> np.ndarray:
    """Of three rows: after their prompts, and after steps together and alone."""
    rows = engine.kv_cache.acquire(3)
    for row, length in zip(rows, (70, 1, 9), strict=True):
        engine.write_prompt(row, np.random.default_rng(length).integers(0, 97, length).tolist())
    engine.prefill(rows)
    found = [engine.read_logits(row) for row in rows]
    for step in range(6):
        for row in rows:
            engine.write_token(row, 31 * step + row)
        for some in [rows] if step % 2 else [[row] for row in rows]:
            engine.decode(some)
        found += [engine.read_logits(row) for row in rows]
    return np.stack(found)


SHAPES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"head_dim": 24, "vocab_size": 193, "intermediate_size": 37}),
]


@KINDS
@pytest.mark.parametrize(("family", "fields"), SHAPES)
def test_logits_are_near_those_of_float32(tmp_path: Path, kind: str, family: str, fields: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path, family, **({"vocab_size": 193} | fields))
    found = []
    for options in ({}, {"quantize": kind}):
        with load_engine(folder, "onnx", max_batch=3, capacity=128, **options) as engine:  # type: ignore[attr-defined]
            found.append(logits_of(engine))
    away = np.sqrt(np.mean((found[1] - found[0]) ** 2)) / np.std(found[0])
    assert 0 < away < {"int8": 0.05, "int4": 0.5}[kind]


@KINDS
def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path: Path, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "large", hidden_size=512, intermediate_size=2048, num_hidden_layers=12)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from gpu import Checkpoint, ModelConfig\n"
        "from gpu.onnx.export import export\n"
        "from gpu.onnx.codes import CODES\n"
        "import onnxruntime\n"
        "folder, target, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
        "model = ModelConfig.from_folder(folder)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "export(Checkpoint.open(folder, model), model, target, quantize=kind)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "export", kind], capture_output=True, text=True, check=True
    )
    model = ModelConfig.from_folder(folder)
    numbers = 12 * (512 * 2048 * 3)
    bits = CODES[kind].bits + 32 / CODES[kind].block
    assert data_size(model, "float32", kind) == pytest.approx(numbers * bits / 8, rel=0.05)
    assert int(done.stdout) * 1024 < 40 * 2**20  # a tensor has 4 MiB


# --- the self-check ---------------------------------------------------------------------------------------------------


class _WritesOverTheLast(OnnxEngine):
    """Decodes one position too early, over the token before."""

    shift = -1

    def _feed(self, row: int, start: int, ids: np.ndarray) -> None:
        decodes = len(ids) == 1 and start > 0
        super()._feed(row, start + self.shift if decodes else start, ids)


class _LeavesAHole(_WritesOverTheLast):
    """Decodes one position too late, and so reads what nobody wrote."""

    shift = 1


class _ForgetsTheLast(OnnxEngine):
    """Decodes at its place, but what the token before left in the cache is gone."""

    def decode(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.buffers.kv_cache[:, :, row, :, self.kv_cache.length(row) - 1] = 0
        super().decode(rows)


@pytest.mark.parametrize("kind", [None, *CODES])
@pytest.mark.parametrize("broken", [_WritesOverTheLast, _LeavesAHole, _ForgetsTheLast])
def test_a_wrong_position_in_the_cache_fails_the_self_check(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, broken: type[OnnxEngine]
) -> None:
    """A tenth is allowed where activations are rounded to 8 bits; a mistake is far above that."""
    for folder in (checkpoint, DEMO_MODEL):
        load_engine(folder, "onnx", max_batch=1, capacity=16, quantize=kind).close()
        with monkeypatch.context() as patched:
            patched.setitem(_ENGINES, "onnx", broken)
            with pytest.raises(SelfCheckError, match="failed its self-check"):
                load_engine(folder, "onnx", max_batch=1, capacity=16, quantize=kind)


# --- files ------------------------------------------------------------------------------------------------------------


def load(folder: Path, kind: str | None) -> set[str]:
    """Load it, and give what was done meanwhile."""
    done: set[str] = set()
    load_engine(folder, "onnx", max_batch=2, quantize=kind, progress=lambda what, *_: done.add(what)).close()
    return done


NOT_READ = {"starting ONNX Runtime"}


def read(kind: str | None) -> set[str]:
    return {"reading weights", *NOT_READ} | (set() if kind is None else {"quantising weights"})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phasewalk" / "exports"


def test_each_kind_is_made_once(checkpoint: Path, cache: Path) -> None:
    for kind in (None, *CODES):
        assert load(checkpoint, kind) == read(kind)
        assert load(checkpoint, kind) == NOT_READ
    names = sorted(folder.name.split("-")[1] for folder in cache.iterdir())
    assert names == ["float32", "int4", "int8"]


@KINDS
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
def test_a_damaged_one_is_made_again(checkpoint: Path, cache: Path, kind: str, name: str) -> None:
    load(checkpoint, kind)
    [folder] = cache.iterdir()
    content = (folder / name).read_bytes()
    for damaged in (content[:100], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        (folder / name).write_bytes(damaged)
        assert load(checkpoint, kind) == read(kind)
        assert (folder / name).read_bytes() == content
    (folder / name).unlink()
    assert load(checkpoint, kind) == read(kind)
    assert load(checkpoint, kind) == NOT_READ


def test_one_kind_in_the_place_of_another_is_made_again(checkpoint: Path, cache: Path) -> None:
    load(checkpoint, "int4")
    [folder] = cache.iterdir()
    os.rename(folder, folder.with_name(folder.name.replace("int4", "int8")))
    assert load(checkpoint, "int8") == read("int8")
    assert load(checkpoint, "int8") == NOT_READ


@KINDS
@pytest.mark.parametrize("tied", [True, False])
def test_quantising_is_reported_piece_by_piece_to_its_end(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool
) -> None:
    folder = write_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    load(folder, kind)
    [exported] = cache.iterdir()
    whole = (exported / "weights.bin").read_bytes()
    shutil.rmtree(exported)
    monkeypatch.setattr(data, "_PIECE", 1000)  # a few rows of a matrix
    steps: list[tuple[int, int]] = []

    def note(what: str, done: int, total: int) -> None:
        if what == "quantising weights":
            steps.append((done, total))

    load_engine(folder, "onnx", max_batch=2, quantize=kind, progress=note).close()
    quantised = 4 * (2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48) + 97 * 32)
    assert {total for _, total in steps} == {quantised}
    done = [0, *(done for done, _ in steps)]
    assert done[-1] == quantised
    assert all(0 < later - earlier <= 1000 for earlier, later in pairwise(done))
    assert (exported / "weights.bin").read_bytes() == whole  # in pieces or at once


def test_an_export_of_other_weights_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    model = ModelConfig.from_folder(checkpoint)
    for kind in (None, "int8"):
        export(Checkpoint.open(checkpoint, model), model, tmp_path / str(kind), quantize=kind)
        load_engine(checkpoint, "onnx", export=tmp_path / str(kind), quantize=kind).close()
    with pytest.raises(OptionError, match="the export has int8 weights: load it with quantize='int8'"):
        load_engine(checkpoint, "onnx", export=tmp_path / "int8")
    with pytest.raises(OptionError, match="the export has float32 weights: load it with quantize=None"):
        load_engine(checkpoint, "onnx", export=tmp_path / "None", quantize="int8")


# --- options and records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fp8", "int3", "", "none"])
def test_an_unknown_kind_is_told_with_what_each_engine_takes(checkpoint: Path, kind: str) -> None:
    message = rf"the engine onnx has no '{kind}' weights: take cuda \(int8, fp8\) or onnx \(int8, int4\)"
    with pytest.raises(OptionError, match=message):
        load_engine(checkpoint, "onnx", quantize=kind)


def test_what_is_told_is_what_they_take(checkpoint: Path) -> None:
    assert _QUANTIZED["onnx"] == (*CODES,)
    model = ModelConfig.from_folder(checkpoint)
    for kind in _QUANTIZED["cuda"]:
        Shape(model, 1, 8, kind).check()
    with pytest.raises(OptionError, match="int8 or fp8"):
        Shape(model, 1, 8, "int4").check()


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@KINDS
def test_a_record_is_gone_on_with_by_the_weights_that_it_was_made_with(
    chat_folder: Path, tmp_path: Path, kind: str
) -> None:
    journal, snapshot = tmp_path / "a.jsonl", tmp_path / "a.snap"
    with Generator.from_pretrained(chat_folder, "onnx", max_batch=2, quantize=kind) as generator:
        environment = generator.environment()
        assert (environment["dtype"], environment["quantize"]) == ("float32", kind)
        run = generator.start(["the fox", "the lazy dog"], GREEDY, journal=journal, digest_every=1)
        run.until(lambda run: run.step_count == 8)
        run.snapshot(snapshot)
        run.resume()
        whole = run.context.output_ids
    with load_generator(Journal.open(journal)) as generator:
        assert generator.environment()["quantize"] == kind
        assert replay(journal, generator=generator).divergence is None
        resumed = generator.resume(snapshot)
        resumed.resume()
        assert resumed.context.output_ids == whole
    for other in {None, *CODES} - {kind}:
        message = f"was made with {kind} weights, here are {other or 'weights that are not quantised'}"
        with Generator.from_pretrained(chat_folder, "onnx", max_batch=2, quantize=other) as generator:
            with pytest.raises(JournalError, match=message):
                replay(journal, generator=generator)
            with pytest.raises(SnapshotError, match=message):
                generator.resume(snapshot)


def test_they_cost_the_bundled_model_little(tmp_path: Path) -> None:
    kinds = [word for name in ("none", *CODES) for word in ("--quantize", name)]
    code = "from phases.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "perplexity", "--engine", "onnx", *kinds, "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    plain, int8, int4 = json.loads(done.stdout)["rows"]
    assert [row["weights"] for row in (plain, int8, int4)] == ["float32", "int8", "int4"]
    assert 1.5 < plain["perplexity"] < 1.7
    assert 0 < abs(int8["change"]) < 0.01
    assert 0 < abs(int4["change"]) < 0.02
    assert math.isclose(int8["same_likeliest"], 1, abs_tol=0.03)
    assert int4["same_likeliest"] > 0.9
