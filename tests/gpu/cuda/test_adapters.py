"""Adapters on the CUDA engine: one graph for all rows, whatever they have, and no kernel for a whole step."""

from pathlib import Path

import pytest
from adapters import random_adapter, write_adapter
from emulated_device import CAN_EMULATE, EmulatedDevice, emulated

from gpu import Adapter, Checkpoint, CudaEngine, DeviceError, ModelConfig

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_EMULATE, reason="the emulated device needs g++ on x86-64")]


def adapter(folder: Path, base: Path, seed: int) -> Adapter:
    model = ModelConfig.from_folder(base)
    return Adapter.read(write_adapter(folder / str(seed), random_adapter(model, 2, seed)), model)


def test_one_graph_serves_rows_of_any_adapter(checkpoint: Path, tmp_path: Path) -> None:
    with emulated(checkpoint, max_batch=4, capacity=32, adapters=2, max_lora_rank=2) as engine:
        assert isinstance(engine, CudaEngine)
        for seed, name in enumerate(("a", "b")):
            engine.load_adapter(name, adapter(tmp_path, checkpoint, seed))
        rows = engine.kv_cache.acquire(4)
        for row in rows:
            engine.write_prompt(row, [1, 2, 3])
        engine.prefill(rows)
        engine.decode(rows)
        captures = engine.graph_counts()["captures"]
        for names in (("a", "b", None, "a"), (None, None, "b", "b"), ("a", "a", "a", "a")):
            for row, name in zip(rows, names, strict=True):
                engine.set_adapter(row, name)
            engine.decode(rows)
        assert engine.graph_counts()["captures"] == captures
        assert "one kernel for a whole step adds no adapters" in str(engine.facts()["decode path"])


def test_a_whole_step_with_adapters_is_refused(checkpoint: Path) -> None:
    model = ModelConfig.from_folder(checkpoint)
    with pytest.raises(DeviceError, match="one kernel for a whole step adds no adapters; leave it out"):
        CudaEngine(
            model, Checkpoint.open(checkpoint, model), rows=1, capacity=16, decode="persistent", adapters=1,
            device=EmulatedDevice(),
        )  # fmt: skip


def test_without_room_nothing_is_bound(checkpoint: Path) -> None:
    with (
        emulated(checkpoint, max_batch=1, capacity=32) as plain,
        emulated(checkpoint, max_batch=1, capacity=32, adapters=2, max_lora_rank=4) as taking,
    ):
        names = [{buffer.name for buffer in engine.memory()} for engine in (plain, taking)]
        assert names[1] - names[0] == {
            "adapters", "between", "added", "qkv_a", "qkv_b", "output_a", "output_b", "gate_up_a", "gate_up_b",
            "down_a", "down_b",
        }  # fmt: skip
        with pytest.raises(ValueError, match="the engine has room for 0 adapters"):
            plain.load_adapter("none", Adapter({}, 1, ""))
