"""The CUDA engine beyond its contract: the same bits at once and one by one, and as near to float32 as bfloat16 is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from codes import KINDS
from emulated_device import CAN_EMULATE, EmulatedDevice
from random_penalties import some_penalties

from gpu import (
    CapacityError,
    Checkpoint,
    CheckpointError,
    Engine,
    ModelConfig,
    Penalties,
    engines,
    load_engine,
    penalised,
    sample,
    self_check,
)
from gpu.cuda.arena import size_of
from gpu.cuda.engine import CudaEngine
from gpu.cuda.shape import Shape

pytestmark = pytest.mark.slow
Load = Callable[..., CudaEngine]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "odd sizes": ("llama", {"hidden_size": 37, "intermediate_size": 41, "vocab_size": 203, "head_dim": 24}),
    "heads of 64": ("llama", {"head_dim": 64}),
    "heads of 80, six to a key": ("qwen2", {"head_dim": 80, "num_attention_heads": 6, "num_key_value_heads": 1}),
    "heads of 96": ("llama", {"head_dim": 96, "num_key_value_heads": 1}),
    "heads of 128": ("qwen3", {"head_dim": 128, "num_key_value_heads": 4}),
    "heads of 256": ("llama", {"head_dim": 256, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "wide": ("llama", {"hidden_size": 40, "intermediate_size": 4100, "num_hidden_layers": 1}),
    "larger": (
        "llama",
        {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "head_dim": 64, "vocab_size": 2003},
    ),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "yarn rope": ("qwen3", {"rope_parameters": YARN}),
}
QUANTIZE = pytest.mark.parametrize("quantize", [None, *KINDS])
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [8], [6, 2, 6, 4])


def logits_of(engine: Engine) -> list[np.ndarray]:
    """Feed the prompts together, then three tokens each; all logits."""
    rows = engine.kv_cache.acquire(len(PROMPTS))
    for row, prompt in zip(rows, PROMPTS, strict=True):
        engine.write_prompt(row, prompt)
    engine.prefill(rows)
    found = [engine.read_logits(row) for row in rows]
    for token in (5, 80, 0):
        for row in rows:
            engine.write_token(row, token)
        engine.decode(rows)
        found += [engine.read_logits(row) for row in rows]
    return found


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_reference_but_for_rounding(load: Load, tmp_path: Path, name: str) -> None:
    family, fields = CASES[name]
    folder = write_checkpoint(tmp_path, family, dtype="bfloat16", **fields)
    engine = load(folder, max_batch=4, capacity=48)
    self_check(engine)
    expected = logits_of(load_engine(folder, "numpy", max_batch=4, capacity=48))
    for found, exact in zip(logits_of(engine), expected, strict=True):
        assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


@QUANTIZE
def test_bits_are_the_same_at_once_in_pieces_one_by_one_and_in_company(
    load: Load, tmp_path: Path, quantize: str | None
) -> None:
    """Over several splits of the attention, chunks of prompts and sizes of the products' tiles."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, num_hidden_layers=1)
    engine = load(folder, max_batch=40, capacity=600, quantize=quantize)
    tokens = np.random.default_rng(0).integers(0, 97, 545).tolist()
    at_once, in_pieces, one_by_one, *others = engine.kv_cache.acquire(40)
    engine.write_prompt(at_once, tokens)
    for row in others:
        engine.write_prompt(row, tokens[: row + 1])
    engine.prefill([*others[:20], at_once, *others[20:]])
    for piece in (tokens[:5], tokens[5:37], tokens[37:501]):
        for row in (in_pieces, one_by_one):
            engine.write_prompt(row, piece)
        engine.prefill([in_pieces, one_by_one])
    engine.write_prompt(in_pieces, tokens[501:])
    engine.prefill([in_pieces])
    for number, token in enumerate(tokens[501:]):
        company = [[], others[:3], others[:20], others][number % 4 if number < 8 else 0]
        for row in (*company, one_by_one):
            engine.write_token(row, token)
        engine.decode([*company, one_by_one])
    expected, cache = engine.read_logits(at_once), engine.export_kv(at_once, 0, 545)
    assert np.isfinite(expected).all()
    for row in (in_pieces, one_by_one):
        assert np.array_equal(engine.read_logits(row), expected)
        assert np.array_equal(engine.export_kv(row, 0, 545), cache)


# Hands of 3 and of 1; of 4, and units that come in fours, but the last.
HANDS_OF_3 = {"hidden_size": 768, "intermediate_size": 1056, "vocab_size": 2060}
HANDS_OF_4 = {"hidden_size": 1024, "intermediate_size": 4108, "vocab_size": 97}


@pytest.mark.parametrize(
    ("sizes", "quantize"), [(HANDS_OF_3, None), (HANDS_OF_4, None), (HANDS_OF_3, "fp8"), (HANDS_OF_4, "int8")]
)
def test_bits_are_the_same_in_the_products_for_few_and_for_many_tokens(
    load: Load, tmp_path: Path, sizes: dict[str, int], quantize: str | None
) -> None:
    folder = write_checkpoint(tmp_path, num_hidden_layers=1, **sizes)
    engine = load(folder, max_batch=40, capacity=8, quantize=quantize)
    rows = engine.kv_cache.acquire(40)
    logits = []
    for count in (1, 12, 20, 40):  # kernels for 8, 16, 32 and 64
        for row in rows[:count]:
            engine.kv_cache.truncate(row, 0)
            engine.write_token(row, 7 + row)
        engine.decode(rows[:count])
        logits.append(engine.read_logits(rows[0]))
    assert np.isfinite(logits[0]).all()
    assert all(np.array_equal(found, logits[0]) for found in logits)


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
def test_bits_do_not_depend_on_how_many_blocks_share_the_work(tmp_path: Path) -> None:
    """A device of many processors cuts a token's positions and heads in more parts than one of few."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, num_attention_heads=8, num_hidden_layers=1)
    model = ModelConfig.from_folder(folder)
    tokens = np.random.default_rng(0).integers(0, 97, 530).tolist()
    found = []
    for processors in (1, 12, 1000):
        device = EmulatedDevice()
        device.processors = processors
        with CudaEngine(model, Checkpoint.open(folder, model), rows=2, capacity=1024, device=device) as engine:
            rows = engine.kv_cache.acquire(2)
            for row in rows:
                engine.write_prompt(row, tokens[row:])
            engine.prefill(rows)
            engine.sample(rows)
            engine.decode(rows)
            found.append([engine.read_logits(row).tobytes() for row in rows])
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"hidden_size": 96, "intermediate_size": 2048}),  # hands of four tiles
        ("qwen3", {"hidden_size": 64, "intermediate_size": 2560}),  # of two
        ("llama", {"hidden_size": 37, "intermediate_size": 1536, "attention_bias": True, "mlp_bias": True}),  # of three
        ("llama", {"hidden_size": 360, "intermediate_size": 83}),  # of one, runs of unequal length
    ],
)
def test_bits_are_those_of_a_device_without_warpgroup_products(
    tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    folder = write_checkpoint(tmp_path, family, num_hidden_layers=1, **fields)
    model = ModelConfig.from_folder(folder)
    tokens = np.random.default_rng(0).integers(0, 97, 140).tolist()
    found = []
    for capability, processors in (((8, 0), 1), ((9, 0), 1), ((9, 0), 1000)):  # tiles of few tokens are split
        device = EmulatedDevice()
        device.capability, device.processors = capability, processors
        with CudaEngine(model, Checkpoint.open(folder, model), rows=2, capacity=140, device=device) as engine:
            rows = engine.kv_cache.acquire(2)
            for row, length in zip(rows, (140, 60), strict=True):
                engine.write_prompt(row, tokens[:length])
                engine.prefill([row])
            found.append([(engine.read_logits(row).tobytes(), engine.export_kv(row, 0, 60).tobytes()) for row in rows])
    assert found[0] == found[1] == found[2]


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in engines(), reason="needs a device")
@pytest.mark.parametrize("batch", [1, 4, 8, 32])
def test_a_step_that_is_repeated_gives_every_bit_again(batch: int) -> None:
    """On a model that fills the device: a race between kernels, or inside one, would show here and nowhere else."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 4}
    fields = {"head_dim": 64, "num_hidden_layers": 6, "vocab_size": 32_003, "max_position_embeddings": 2048}
    with CudaEngine(ModelConfig.from_json(tiny_config(**sizes, **fields)), None, rows=32, capacity=2048) as engine:
        rows = engine.kv_cache.acquire(batch)
        random = np.random.default_rng(batch)
        for row in rows:
            engine.write_prompt(row, random.integers(0, 32_003, 40 + 37 * row).tolist())
        engine.prefill(rows)
        first: list[np.ndarray] | None = None
        for number in range(300):
            for row in rows:
                engine.write_token(row, 17 + row)
            engine.decode(rows)
            found = [engine.read_logits(row) for row in rows]
            assert all(np.isfinite(logits).all() for logits in found)
            first = first or found
            assert all(np.array_equal(a, b) for a, b in zip(found, first, strict=True)), number
            for row in rows:
                engine.kv_cache.truncate(row, engine.kv_cache.length(row) - 1)


def random_rows(random: np.random.Generator, count: int, vocab: int) -> np.ndarray:
    """Logits with ties, masks, zeros of both signs and extremes."""
    rows = random.standard_normal((count, vocab), np.float32)
    rows *= random.choice(np.array([0.01, 1, 4, 30], np.float32), (count, 1))
    for row, kind in zip(rows, random.integers(0, 9, count), strict=True):
        if kind == 0:
            row[:] = np.round(row)
        elif kind == 1:
            row[random.random(vocab) < 0.9] = -np.inf
        elif kind == 2:
            row[:] = random.choice(np.array([0.0, -0.0, 1e-45, -1e-45], np.float32), vocab)
        elif kind == 3:
            row *= np.float32(1e35)
        elif kind == 4:
            row[:] = -np.inf
        row[random.integers(0, vocab)] = row[random.integers(0, vocab)] if kind != 4 else 1.5
    return rows


def parameters(random: np.random.Generator, vocab: int) -> dict[str, Any]:
    return {
        "temperature": float(random.choice([0.0, 1e-300, 0.05, 0.7, 1.0, 3.0, 1e300])),
        "top_k": int(random.choice([0, 0, 1, 2, 40, vocab - 1, vocab, 2**40])),
        "top_p": float(random.choice([1.0, 1.0, 0.0, 1e-9, 0.3, 0.9, 0.999999])),
        "min_p": float(random.choice([0.0, 0.0, 1e-9, 0.1, 1.0])),
        "seed": int(random.integers(0, 2**64, dtype=np.uint64)),
    }


@pytest.mark.parametrize(("vocab", "share"), [(97, 1.0), (1031, 1.0), (128_256, 0.02)])
def test_drawn_tokens_are_those_of_the_specification(
    load: Load, device: str, tmp_path: Path, vocab: int, share: float
) -> None:
    rows = 64
    engine = load(write_checkpoint(tmp_path, vocab_size=vocab, num_hidden_layers=1), max_batch=rows, capacity=64)
    engine.kv_cache.acquire(rows)
    random = np.random.default_rng(vocab)
    rounds = max(1, round(share * (200 if device == "device" else 4)))
    for number in range(rounds):
        chosen = random.permutation(rows)[: rows if number % 4 else 5].tolist()
        logits, given = random_rows(random, len(chosen), vocab), [parameters(random, vocab) for _ in chosen]
        for row, values, options in zip(chosen, logits, given, strict=True):
            engine.kv_cache.truncate(row, 0)
            engine.kv_cache.commit(row, int(random.integers(0, 65)))
            engine.write_logits(row, values)
            engine.set_sampling(row, **options)
        engine.sample(chosen)
        expected = tuple(
            sample(values, **options, position=engine.kv_cache.length(row))
            for row, values, options in zip(chosen, logits, given, strict=True)
        )
        assert engine.sampled(chosen) == expected, number


@pytest.mark.parametrize(("vocab", "rounds"), [(1031, 3), (20_011, 1)])
def test_penalties_are_those_of_the_specification_however_wide_the_rows(
    load: Load, device: str, tmp_path: Path, vocab: int, rounds: int
) -> None:
    rows, capacity = 16, 1500  # more positions than a block has threads
    engine = load(
        write_checkpoint(tmp_path, vocab_size=vocab, num_hidden_layers=1, max_position_embeddings=capacity),
        max_batch=rows, capacity=capacity,
    )  # fmt: skip
    engine.kv_cache.acquire(rows)
    random = np.random.default_rng(vocab)
    for number in range(rounds * (20 if device == "device" else 1)):
        chosen = random.permutation(rows)[: rows if number % 4 else 5].tolist()
        expected = []
        for row in chosen:
            length, history = int(random.integers(0, capacity)), random.integers(0, vocab, capacity).astype(np.int32)
            history[random.random(capacity) < 0.5] %= 30  # some come often
            logits, options = random.standard_normal(vocab).astype(np.float32), parameters(random, vocab)
            penalties = some_penalties(random, vocab)
            changed = penalised(logits, history[:length], penalties)
            if not np.isfinite(changed).any():
                penalties, changed = Penalties(), logits
            engine.kv_cache.truncate(row, 0)
            engine.kv_cache.commit(row, length)
            engine.write_logits(row, logits)
            engine.set_sampling(row, **options)
            engine.set_penalties(row, penalties)
            engine.write_history(row, 0, history.tolist())
            expected.append(sample(changed, **options, position=length))
        engine.sample(chosen)
        assert engine.sampled(chosen) == tuple(expected), number


def test_a_step_that_was_recorded_once_is_launched_as_one(load: Load, tmp_path: Path) -> None:
    engine = load(write_checkpoint(tmp_path), max_batch=8, capacity=48)
    rows = engine.kv_cache.acquire(8)
    for row in rows:
        engine.write_prompt(row, [1, 2, row])
    engine.prefill(rows)
    for count in (1, 2, 3, 4, 5, 8, 8, 7):
        engine.sample(rows[:count])
        engine.decode(rows[:count])
    # A prompt and its logits; decode and sample for 1, 2, 4 and 8 tokens.
    assert engine.graph_counts() == {"hits": 2 + 2 * 8, "captures": 2 + 2 * 4, "fallbacks": 0}
    facts = engine.facts()
    assert str(facts.pop("decode path")).startswith("per-op (the matrices of `")
    assert facts == {"graph hits": 18, "graph captures": 10, "graph fallbacks": 0}
    before = [engine.read_logits(row) for row in rows]
    engine.clear_cuda_graphs()
    for row in rows:
        engine.kv_cache.truncate(row, engine.kv_cache.length(row) - 1)
    engine.decode(rows)  # what was fed last is still the next token
    assert engine.graph_counts()["captures"] == 2 + 2 * 4 + 1
    assert all(np.array_equal(engine.read_logits(row), logits) for row, logits in zip(rows, before, strict=True))


def test_a_graph_that_cannot_be_recorded_is_done_without(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path)
    expected = logits_of(load(folder, max_batch=4, capacity=48))
    engine = load(folder, max_batch=4, capacity=48)

    def refuse(work: Any) -> Any:
        raise RuntimeError("not here")

    monkeypatch.setattr(engine._device, "capture", refuse)
    assert all(np.array_equal(a, b) for a, b in zip(logits_of(engine), expected, strict=True))
    counts = engine.graph_counts()
    assert counts["hits"] == 0
    assert counts["fallbacks"] == 5


def test_more_goes_through_the_ring_than_it_holds(load: Load, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, max_position_embeddings=8192, head_dim=128, num_hidden_layers=1)
    engine = load(folder, max_batch=2, capacity=8192)
    model = engine.model
    shape = (model.layers, 2, model.kv_heads, 8192, model.head_dim)  # a line of it is larger than a slot
    written = np.random.default_rng(0).integers(-99, 99, shape).astype(np.float32)
    engine.import_kv(1, 0, written)
    assert np.array_equal(engine.export_kv(1, 0, 8192), written)
    assert not engine.export_kv(0, 0, 8192).any()


def test_heads_that_no_kernel_is_made_for_are_refused(load: Load, tmp_path: Path) -> None:
    for head_dim in (12, 264):
        folder = write_checkpoint(tmp_path / str(head_dim), head_dim=head_dim)
        with pytest.raises(CheckpointError, match=f'head_dim is {head_dim}.*engine="numpy"'):
            load(folder)


def test_too_little_memory_says_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path, max_position_embeddings=4096)
    model = ModelConfig.from_folder(folder)
    checkpoint = Checkpoint.open(folder, model)
    monkeypatch.setattr(EmulatedDevice, "memory_free", lambda self: 16 << 20)
    with pytest.raises(CapacityError, match=r"the device has free 16.0 MiB.*max_batch=\d+ would fit") as caught:
        CudaEngine(model, checkpoint, rows=400, capacity=4096, device=EmulatedDevice())
    fits = int(str(caught.value).split("max_batch=")[-1].split()[0])
    assert Shape(model, fits, 4096).slots >= fits
    CudaEngine(model, checkpoint, rows=fits, capacity=4096, device=EmulatedDevice()).close()
    monkeypatch.setattr(EmulatedDevice, "memory_free", lambda self: 1 << 10)
    with pytest.raises(CheckpointError, match=r"the device has free 1.0 KiB: choose a smaller model$"):
        CudaEngine(model, checkpoint, rows=1, capacity=8, device=EmulatedDevice())

    rounded = size_of(Shape(model, 1, 8, "int8").weights())
    monkeypatch.setattr(EmulatedDevice, "memory_free", lambda self: rounded)
    with pytest.raises(CheckpointError, match=r'smaller model or quantize="int8", which takes [\d.]+ KiB$'):
        CudaEngine(model, checkpoint, rows=1, capacity=8, device=EmulatedDevice())
    with pytest.raises(CapacityError, match="the device has free"):
        CudaEngine(model, checkpoint, rows=1, capacity=8, quantize="int8", device=EmulatedDevice())
