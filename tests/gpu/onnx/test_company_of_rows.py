"""Rows that decode together have the bits that each has alone, through one graph for all or, failing that, in turns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

from gpu import Engine, OnnxEngine, load_engine
from gpu.onnx.together import Together

pytestmark = pytest.mark.slow

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 300, 511)
SIZES = {"hidden_size": 320, "intermediate_size": 868, "head_dim": 64, "num_attention_heads": 6, "vocab_size": 1031}


def started(folder: Path, *, threads: int = 1, rows: int = len(LENGTHS), quantize: str | None = None) -> OnnxEngine:
    """An engine whose rows hold prompts of all lengths."""
    engine = load_engine(folder, "onnx", max_batch=rows, capacity=560, threads=threads, quantize=quantize)
    assert isinstance(engine, OnnxEngine)
    random = np.random.default_rng(3)
    for row, length in zip(engine.kv_cache.acquire(rows), LENGTHS, strict=False):
        engine.write_prompt(row, random.integers(0, 1031, length).tolist())
        engine.prefill([row])
        engine.write_token(row, 7 * row)
    return engine


def step(engine: Engine, groups: Sequence[Sequence[int]]) -> dict[int, bytes]:
    """What a decode step leaves of each row, where rows go in these groups; the rows go back to where they were."""
    lengths = engine.kv_cache.lengths
    for rows in groups:
        engine.decode(rows)
    found = {}
    for row in (row for rows in groups for row in rows):
        cache = engine.export_kv(row, lengths[row], lengths[row] + 1)
        found[row] = engine.read_logits(row).tobytes() + cache.tobytes()
        engine.import_kv(row, lengths[row], np.full_like(cache, np.nan))
        engine.kv_cache.truncate(row, lengths[row])
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("family", "quantize"),
    [
        ("llama", None),
        ("qwen2", None),
        ("qwen3", None),
        ("qwen2", "int8"),
        ("qwen3", "int8"),
        ("qwen2", "int4"),
        ("qwen3", "int4"),
    ],
)
def test_every_length_has_its_bits_in_any_place_and_company(
    tmp_path: Path, family: str, quantize: str | None, threads: int
) -> None:
    folder = write_checkpoint(tmp_path, family, max_position_embeddings=1024, **SIZES)
    random = np.random.default_rng(0)
    with started(folder, threads=threads, quantize=quantize) as engine:
        rows = range(len(LENGTHS))
        alone = step(engine, [[row] for row in rows])
        assert engine.facts() == {"batches": "none yet"}
        for _ in range(6):
            order = random.permutation(len(LENGTHS)).tolist()
            cuts = sorted(random.integers(0, len(order), 2).tolist())
            groups = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
            assert step(engine, [group for group in groups if group]) == alone
        assert engine.facts() == {"batches": "up to 8 rows together"}


def test_where_company_changes_a_bit_rows_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last bit that is turned in one row's logits stands in for a library that rounds otherwise."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, **SIZES)
    with started(folder, rows=3) as engine:
        alone = step(engine, [[0], [1], [2]])

        def feed(self: Together, rows: Sequence[int], starts: Sequence[int]) -> None:
            plain(self, rows, starts)
            engine.buffers.logits[rows[-1]] = np.nextafter(engine.buffers.logits[rows[-1]], np.float32(np.inf))

        plain = Together.feed
        monkeypatch.setattr(Together, "feed", feed)
        for _ in range(2):
            assert step(engine, [[2, 0, 1]]) == alone
        assert engine.facts() == {
            "batches": "one row after the other: this build of ONNX Runtime rounds a row otherwise in company"
        }


def test_where_two_copies_of_the_weights_do_not_fit_rows_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu.onnx.engine as module

    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, **SIZES)
    with started(folder, rows=3) as engine:
        monkeypatch.setattr(module, "machine_memory", lambda: 2**20)
        alone = step(engine, [[0], [1], [2]])
        assert step(engine, [[2, 0, 1]]) == alone
        assert "a second graph's weights would not fit into memory" in str(engine.facts()["batches"])
