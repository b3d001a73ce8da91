"""LoRA adapters: a row with one computes what merged weights do, whoever shares its batch, and one without as ever."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_adapter, write_adapter, write_merged
from checkpoints import FAMILIES, write_checkpoint

from gpu import Adapter, Engine, ModelConfig

pytestmark = pytest.mark.slow

Load = Callable[..., Engine]
PROMPT, CAPACITY = [5, 9, 2, 77, 31, 8, 8, 1], 40
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
}


@pytest.fixture
def taking(load: Load) -> Load:
    """Loads a checkpoint into the engine under test with room for adapters."""
    return lambda folder, **options: load(
        folder, **({"adapters": 3, "max_lora_rank": 8, "capacity": CAPACITY} | options)
    )


def adapter_of(folder: Path, base: Path, seed: int = 0, rank: int = 4) -> tuple[Adapter, Path]:
    """An adapter, and the checkpoint into which it is merged."""
    model, name = ModelConfig.from_folder(base), f"{seed}-{rank}"
    tensors = random_adapter(model, rank, seed)
    merged = write_merged(base, folder / f"merged-{name}", tensors)
    return Adapter.read(write_adapter(folder / f"adapter-{name}", tensors), model), merged


def fed(engine: Engine, rows: list[int], adapters: list[str | None], steps: int = 6) -> list[np.ndarray]:
    """The logits that each row has after its prompt and after each step, all of them fed the same tokens."""
    for row, adapter in zip(rows, adapters, strict=True):
        engine.set_adapter(row, adapter)
        engine.kv_cache.truncate(row, 0)
        engine.write_prompt(row, PROMPT)
    engine.prefill(rows)
    found = [[engine.read_logits(row)] for row in rows]
    for step in range(steps):
        for row in rows:
            engine.write_token(row, 11 * step % 97)
        engine.decode(rows)
        for logits, row in zip(found, rows, strict=True):
            logits.append(engine.read_logits(row))
    return [np.stack(logits) for logits in found]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_with_an_adapter_has_the_logits_of_merged_weights(
    taking: Load, load: Load, tmp_path: Path, shape: str, near: float
) -> None:
    base = write_checkpoint(tmp_path / "base", SHAPES[shape][0], **SHAPES[shape][1])
    adapter, merged = adapter_of(tmp_path, base)
    engine = taking(base, max_batch=2)
    engine.load_adapter("one", adapter)
    [row, other] = engine.kv_cache.acquire(2)
    [found, without] = fed(engine, [row, other], ["one", None])
    with closing(load(merged, max_batch=1, capacity=CAPACITY)) as reference:
        [expected] = fed(reference, list(reference.kv_cache.acquire(1)), [None])
    assert np.abs(without - expected).max() > 0.5, "the adapter is to change something"
    if engine.environment()["dtype"] == "bfloat16":  # to which merged weights are rounded, and an adapter's are not
        near = 0.05
    np.testing.assert_allclose(found, expected, atol=near * max(1, np.abs(expected).max()), rtol=0)


def test_bits_depend_on_the_rows_own_adapter_alone(taking: Load, load: Load, checkpoint: Path, tmp_path: Path) -> None:
    adapters = {f"rank {rank}": adapter_of(tmp_path, checkpoint, rank, rank)[0] for rank in (1, 3, 8)}
    engine = taking(checkpoint, max_batch=5)
    for name, adapter in adapters.items():
        engine.load_adapter(name, adapter)
    rows = list(engine.kv_cache.acquire(5))
    alone = {name: fed(engine, [rows[0]], [name])[0] for name in (None, *adapters)}
    with closing(load(checkpoint, max_batch=5, capacity=CAPACITY)) as plain:
        [expected] = fed(plain, list(plain.kv_cache.acquire(1)), [None])
    assert np.array_equal(alone[None], expected), "without an adapter, as an engine without any"
    for mixed in (
        [None, "rank 1", "rank 3", "rank 8", None],
        ["rank 8", "rank 8", None, "rank 1", "rank 8"],
        ["rank 3", "rank 3", "rank 3", "rank 3", "rank 3"],
    ):
        for name, found in zip(mixed, fed(engine, rows, mixed), strict=True):
            assert np.array_equal(found, alone[name]), f"{name} among {mixed}"


def test_switching_moves_nothing_and_may_come_in_the_middle_of_a_row(
    taking: Load, checkpoint: Path, tmp_path: Path
) -> None:
    engine = taking(checkpoint, max_batch=2)
    before = engine.memory()
    adapters = [adapter_of(tmp_path, checkpoint, seed)[0] for seed in (1, 2)]
    for name, adapter in zip(("a", "b"), adapters, strict=True):
        engine.load_adapter(name, adapter)
    [row, other] = engine.kv_cache.acquire(2)
    found = {}
    for name in ("a", "b", None, "a"):
        [logits] = fed(engine, [row], [name], steps=2)
        if name in found:
            assert np.array_equal(logits, found[name])
        found[name] = logits
    assert engine.memory() == before
    # What the cache holds stays, and only what comes next is of the other adapter.
    fed(engine, [row, other], ["a", "a"], steps=2)
    engine.set_adapter(other, "b")
    for each in (row, other):
        engine.write_token(each, 3)
    engine.decode([row, other])
    last = engine.kv_cache.length(row) - 1
    assert np.array_equal(engine.export_kv(row, 0, last), engine.export_kv(other, 0, last))
    assert not np.array_equal(engine.read_logits(row), engine.read_logits(other))


def test_adapters_that_cannot_be_taken_are_refused_and_leave_nothing(
    taking: Load, checkpoint: Path, tmp_path: Path
) -> None:
    model = ModelConfig.from_folder(checkpoint)
    engine = taking(checkpoint, max_batch=1, adapters=1, max_lora_rank=4)
    large = Adapter.read(write_adapter(tmp_path / "large", random_adapter(model, 5)), model)
    small = Adapter.read(write_adapter(tmp_path / "small", random_adapter(model, 4)), model)
    with pytest.raises(ValueError, match="rank 5, the engine takes 4 at most: load it with max_lora_rank=5"):
        engine.load_adapter("large", large)
    with pytest.raises(ValueError, match="there is no adapter 'large': expected none"):
        engine.set_adapter(0, "large")
    engine.load_adapter("small", small)
    with pytest.raises(ValueError, match="there is an adapter 'small' already"):
        engine.load_adapter("small", small)
    with pytest.raises(ValueError, match="room for 1 adapters, and as many are loaded: load it with adapters=2"):
        engine.load_adapter("another", small)
    with pytest.raises(ValueError, match="there is no adapter 'other': expected 'small'"):
        engine.set_adapter(0, "other")
    with pytest.raises(ValueError, match="there is no row 1"):
        engine.set_adapter(1, None)
    loaded = engine.adapters["small"]
    assert (loaded.index, loaded.rank, loaded.fingerprint) == (0, 4, small.fingerprint)
    assert [*engine.adapters] == ["small"]
    plain = engine.bytes_per_token([0])
    engine.set_adapter(0, "small")
    assert engine.bytes_per_token([0]) > plain


def test_decode_with_adapters_allocates_nothing(
    taking: Load, checkpoint: Path, tmp_path: Path, allocates_nothing: bool
) -> None:
    if not allocates_nothing:
        pytest.skip("it does not promise that")
    import tracemalloc

    engine = taking(checkpoint, max_batch=2)
    engine.load_adapter("one", adapter_of(tmp_path, checkpoint)[0])
    rows = list(engine.kv_cache.acquire(2))
    fed(engine, rows, ["one", None], steps=3)
    tracemalloc.start()
    try:
        engine.decode(rows)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            engine.decode(rows)
        assert tracemalloc.get_traced_memory()[1] - before < 8192
    finally:
        tracemalloc.stop()
