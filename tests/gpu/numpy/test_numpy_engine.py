"""The NumPy engine's own promises, beside those of every engine in `conformance`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint

from gpu import Buffers, ModelConfig, NumpyEngine, SelfCheckError, load_engine, self_check


def test_buffers_list_themselves_with_their_addresses() -> None:
    buffers = Buffers.allocate(ModelConfig.from_json(tiny_config()), rows=3, capacity=5)
    listed = {info.name: info for info in buffers}
    assert listed["input_ids"][1:3] == ((3, 5), "int32")
    assert listed["logits"][1:3] == ((3, 97), "float32")
    assert listed["seed"][1:3] == ((3,), "uint64")
    assert listed["kv_cache"].shape == (2, 2, 3, 2, 5, 8)  # layer, side, row, head, position, dimension
    assert listed["logits"].address == buffers.logits.ctypes.data
    buffers.seed[1], buffers.top_k[1] = 2**64 - 1, np.iinfo(np.int32).max
    found = buffers.values(1)
    assert (found["seed"], found["top_k"], found["top_p"]) == (2**64 - 1, 2**31 - 1, 1.0)
    assert "logits" not in found
    assert tuple(buffers) == tuple(listed.values())


def test_a_step_reads_every_weight_once(tmp_path: Path) -> None:
    engine = load_engine(write_checkpoint(tmp_path), max_batch=2, capacity=16)
    layer = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48
    assert engine.bytes_per_token(()) == 4 * (2 * layer + 97 * 32)
    assert engine.bytes_per_token((0,)) == engine.bytes_per_token(()) + 32 * 4
    assert engine.kv_cache.bytes_per_position == 2 * 2 * 2 * 8 * 4


class _SkipsAPosition(NumpyEngine):
    """Leaves a hole in the cache at each decode step, and so reads what nobody wrote."""

    def decode(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.kv_cache.commit(row, 1)
        super().decode(rows)


def test_an_engine_that_is_broken_is_not_loaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load_engine.__globals__["_ENGINES"], "broken", _SkipsAPosition)
    with pytest.raises(SelfCheckError, match="failed its self-check"):
        load_engine(checkpoint, "broken", max_batch=1, capacity=16)
    engine = load_engine(checkpoint, "broken", max_batch=1, capacity=16, self_check=False)
    with pytest.raises(SelfCheckError):
        self_check(engine)
    assert engine.kv_cache.free == 1
