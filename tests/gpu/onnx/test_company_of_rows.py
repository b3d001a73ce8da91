"""Rows that decode together have the bits that each has alone, through one graph for all or, failing that, in turns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

from gpu import Engine, OnnxEngine, load_engine

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


def test_who_rests_among_those_that_decode_is_left_as_it_was(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, **SIZES)
    with started(folder) as engine:
        cache = engine.buffers.kv_cache
        cache[np.isnan(cache)] = 0
        alone = step(engine, [[row] for row in range(len(LENGTHS))])
        for rows in ([0, 7], [1, 4, 5], [3, 11], [0, 2, 4, 6, 8, 10]):
            resting = [row for row in range(len(LENGTHS)) if row not in rows]
            before = cache[:, :, resting].tobytes() + engine.buffers.logits[resting].tobytes()
            for _ in range(2):  # the second time they are known to have the bits that they have alone
                assert step(engine, [rows]) == {row: alone[row] for row in rows}
            assert cache[:, :, resting].tobytes() + engine.buffers.logits[resting].tobytes() == before


def test_rows_on_both_sides_of_a_full_one_decode(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, **SIZES)
    with started(folder, rows=5) as engine:
        alone = step(engine, [[0], [1], [3], [4]])
        engine.buffers.kv_cache[:, :, 2, :, LENGTHS[2] :] = 1
        engine.kv_cache.commit(2, 560 - LENGTHS[2])
        full = engine.export_kv(2, 0, 560)
        for _ in range(2):
            assert step(engine, [[0, 1, 3, 4]]) == alone
        assert np.array_equal(engine.export_kv(2, 0, 560), full)


def test_where_company_changes_a_bit_rows_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last bit that is turned in one row's logits stands in for a library that rounds otherwise."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, **SIZES)
    with started(folder, rows=4) as engine:
        alone = step(engine, [[0], [1], [2]])
        assert step(engine, [[0, 1]]) == {row: alone[row] for row in (0, 1)}  # who have the same bits

        def feed(self: OnnxEngine, rows: list[int], adapter: int | None) -> None:
            plain(self, rows, adapter)
            self.buffers.logits[rows[-1]] = np.nextafter(self.buffers.logits[rows[-1]], np.float32(np.inf))

        plain = OnnxEngine._feed_together
        monkeypatch.setattr(OnnxEngine, "_feed_together", feed)
        for rows in ([2, 0, 1], [0, 1, 2], [0, 1]):
            assert step(engine, [rows]) == {row: alone[row] for row in rows}
        assert engine.facts() == {
            "batches": "one row after the other: this build of ONNX Runtime rounds a row otherwise in company"
        }
