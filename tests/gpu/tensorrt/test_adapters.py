"""Adapters on the TensorRT engine: a graph for each, steps one after the other, and plans that take them."""

from pathlib import Path

import pytest
from adapters import random_adapter, write_adapter
from tensorrt_stand_in import CAN_STAND_IN, Ada, StandIn, stood_in, write_stand_in_plan

from gpu import Adapter, Checkpoint, ModelConfig, OptionError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_STAND_IN, reason="needs g++ and a TensorRT")]


def adapter(folder: Path, base: Path, seed: int, rank: int = 2) -> Adapter:
    model = ModelConfig.from_folder(base)
    return Adapter.read(write_adapter(folder / f"{seed}-{rank}", random_adapter(model, rank, seed)), model)


def test_each_adapter_has_a_graph_of_its_own_that_is_recorded_once(checkpoint: Path, tmp_path: Path) -> None:
    with stood_in(checkpoint, max_batch=3, capacity=24, adapters=2, max_lora_rank=4) as engine:
        for name, rank in (("a", 2), ("b", 4)):
            engine.load_adapter(name, adapter(tmp_path, checkpoint, 0, rank))
        rows = engine.kv_cache.acquire(3)
        for row in rows:
            engine.write_prompt(row, [1, 2, 3])
        engine.prefill(rows)
        engine.decode(rows)
        captures = engine.graph_counts()["captures"]
        for names in (("a", "b", None), ("b", "b", "a"), (None, "a", "b")):
            for row, name in zip(rows, names, strict=True):
                engine.set_adapter(row, name)
            engine.decode(rows)
        assert engine.graph_counts()["captures"] == captures + 2
        assert engine.facts()["decode"] == "whole; rows x positions: 3 x 24, 3 x 24 with a, 3 x 24 with b"
        assert engine.kv_cache.lengths == (7, 7, 7)


@pytest.mark.parametrize(
    ("of_plan", "asked", "words"),
    [
        (None, None, "the plan takes no adapters: export the checkpoint with --lora-rank 64, and build another"),
        (
            4,
            8,
            "the plan takes adapters of rank 4 at most: load it with max_lora_rank=4, or export the checkpoint with",
        ),
    ],
)
def test_a_plan_that_takes_no_such_adapters_is_refused(
    checkpoint: Path, tmp_path: Path, of_plan: int | None, asked: int | None, words: str
) -> None:
    from gpu.tensorrt.engine import TensorRTEngine

    model, device = ModelConfig.from_folder(checkpoint), Ada()
    plan = write_stand_in_plan(checkpoint, tmp_path / "plan", rows=1, capacity=24, lora_rank=of_plan)
    with pytest.raises(OptionError, match=words):
        TensorRTEngine(
            model, Checkpoint.open(checkpoint, model), rows=1, capacity=24, plan=plan, adapters=1, max_lora_rank=asked,
            device=device, runtime=StandIn(device),
        )  # fmt: skip
