"""What the engine computes, by a stand-in that computes the plan's graph, and on a device where there is one."""

import hashlib
import math
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from greedy import generate, prompted
from onnx import GraphProto, helper
from tensorrt_stand_in import CAN_STAND_IN, CAPACITY, ROWS, Ada, StandIn, stood_in, write_stand_in_plan
from unreliable_device import InterruptedDevice

from gpu import CapacityError, Checkpoint, ModelConfig, SelfCheckError, engines, load_engine, self_check
from gpu.onnx.lora import RANK, lora_shapes
from gpu.tensorrt.available import flavour, missing_to_run
from gpu.tensorrt.plan import PAGE
from gpu.verdict import verdict

Load = Callable[..., Any]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_STAND_IN, reason="no g++ on x86-64, or no TensorRT")]


def test_the_last_position_of_a_plan_is_spare_and_told(load: Load) -> None:
    engine = load(capacity=28)
    assert engine.kv_cache.capacity == 27
    assert engine.facts()["tokens of a row"] == "27; the plan has 28 positions, of which 1 is spare"
    prompted(engine, 0, [1] * 27)
    with pytest.raises(CapacityError):
        engine.decode([0])


def test_a_full_row_rests_unharmed_while_others_decode(load: Load) -> None:
    engine = load(capacity=28)
    prompted(engine, 0, list(range(1, 28)))
    prompted(engine, 1, [4, 5])
    cache, logits = engine.export_kv(0, 0, 27), engine.read_logits(0)
    for _ in range(5):
        engine.sample([1])
        engine.decode([1])
    assert np.array_equal(engine.export_kv(0, 0, 27), cache)
    assert np.array_equal(engine.read_logits(0), logits)


def test_a_row_that_held_no_numbers_computes_again(load: Load) -> None:
    """Attention multiplies what it does not look at by 0, which of NaN makes NaN."""
    engine = load()
    expected = generate(engine, [0, 1])
    for row in (0, 1):
        engine.import_kv(row, 0, np.full_like(engine.export_kv(row, 0, CAPACITY), np.nan))
    assert generate(engine, [0, 1]) == expected
    engine.kv_cache.truncate(0, 4)
    engine.import_kv(0, 4, np.full_like(engine.export_kv(0, 4, CAPACITY), np.nan))
    engine.decode([0])
    assert np.isfinite(engine.read_logits(0)).all()
    assert not engine.export_kv(0, 5, CAPACITY).any()


def test_a_step_that_looks_at_what_no_token_has_is_found_at_load(load: Load, world: StandIn) -> None:
    def see_everything(graph: GraphProto) -> None:
        compare = next(node for node in graph.node if node.name == "mask")
        compare.output[0] = "seen"
        at = list(graph.node).index(compare) + 1
        graph.node.insert(at, helper.make_node("Not", ["seen"], ["unseen"]))
        graph.node.insert(at + 1, helper.make_node("Or", ["seen", "unseen"], ["mask"]))

    self_check(load())
    world.changes_steps = see_everything
    with pytest.raises(SelfCheckError, match="the tensorrt engine failed its self-check"):
        self_check(load())


def test_inputs_of_an_adapter_are_bound_to_zeros_of_rank_1(
    load: Load, world: StandIn, checkpoint: Path, tmp_path: Path
) -> None:
    expected = generate(load(), [0, 1])
    world.calls.clear()
    taking = write_stand_in_plan(checkpoint, tmp_path / "adapters", rows=ROWS, capacity=CAPACITY, lora_rank=4)
    engine = load(plan=taking)
    given = lora_shapes(engine.model)
    shapes = {name: shape for of, _, (name, shape) in world.named("set_input_shape") if of == "decode"}
    assert {name: shapes[name] for name in given} == {
        name: tuple(1 if size == RANK else size for size in shape) for name, shape in given.items()
    }
    bound = {name: address for _, _, (name, address) in world.named("set_tensor_address")}
    zeros = {buffer.name: buffer for buffer in engine.memory()}["no_adapter"]
    assert {bound[name] for name in given} == {zeros.address}
    assert zeros.shape == (max(math.prod(shapes[name]) for name in given) * 4,)
    assert generate(engine, [0, 1]) == expected


@pytest.mark.usefixtures("builds_anywhere")
@pytest.mark.skipif(flavour() != "tensorrt_rtx", reason="builds for the GPU that is there alone")
def test_it_exports_and_builds_what_it_needs_and_then_finds_it(
    world: StandIn, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the way from a checkpoint: only the engine that the real builder makes is computed by the stand-in."""
    from gpu.onnx.export import export
    from gpu.tensorrt.cached import positions_of
    from gpu.tensorrt.engine import TensorRTEngine

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, told = ModelConfig.from_folder(checkpoint), []
    positions = positions_of(CAPACITY)
    export(
        Checkpoint.open(checkpoint, model), model, tmp_path / "same", capacity=positions, max_batch=ROWS,
        spare=positions - model.max_positions,
    )  # fmt: skip

    class Known(dict[str, Path]):
        def get(self, sha256: str, default: object = None) -> Path:  # type: ignore[override]
            [plan] = tmp_path.rglob("model.plan")
            assert hashlib.sha256(plan.read_bytes()[PAGE:]).hexdigest() == sha256
            return tmp_path / "same"

    world.known = Known()
    expected = load_engine(checkpoint, "numpy", max_batch=ROWS, capacity=CAPACITY)
    for _ in range(2):
        opened = Checkpoint.open(checkpoint, model, lambda what, *_: told.append(what))
        with TensorRTEngine(
            model, opened, rows=ROWS, capacity=CAPACITY, dtype="float32", device=world.device, runtime=world
        ) as engine:
            assert generate(engine, [0, 2]) == generate(expected, [0, 2])
            assert str(engine.facts()["plan"]).startswith("of the cache folder, tensorrt_rtx ")
    assert told.count("starting TensorRT") == 2
    building = [what for what in told if what.startswith("building a plan with TensorRT")]
    assert len(building) == len(set(building)) > 1  # once


@pytest.mark.parametrize("decode", ["whole", "fitted"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_ctrl_c_at_any_launch_leaves_an_engine_that_goes_on(checkpoint: Path, after: bool, decode: str) -> None:
    device = InterruptedDevice()
    device.capability = Ada.capability
    with closing(stood_in(checkpoint, max_batch=2, capacity=CAPACITY, device=device, decode=decode)) as engine:
        expected = generate(engine, [0, 1], 3)
        for at in range(1000):
            if at % 3 == 0:
                engine.clear_cuda_graphs()  # type: ignore[attr-defined]
                engine._of_steps.clear()  # type: ignore[attr-defined]  # as before the first step of each kind
            with device.interrupting(at, after=after), suppress(KeyboardInterrupt):
                assert generate(engine, [0, 1], 3) == expected
                break
            assert generate(engine, [0, 1], 3) == expected, at
        assert at > 20


def test_the_environment_tells_what_can_change_a_bit(load: Load, checkpoint: Path, tmp_path: Path) -> None:
    found = load().environment()
    assert (found["engine"], found["dtype"], found["positions"]) == ("tensorrt", "float32", 28)
    assert found["tensorrt"].startswith(str(flavour()))
    assert "activations" not in found
    other = write_stand_in_plan(checkpoint, tmp_path / "other", rows=ROWS, capacity=CAPACITY)
    assert load(plan=other).environment()["plan"] != found["plan"]
    assert load(rows=2).environment()["rows"] == 2


def test_a_closed_engine_gives_everything_back(load: Load, world: StandIn) -> None:
    engine = load(decode="fitted")
    prompted(engine, 0, [1, 2])
    engine.decode([0])
    contexts = [*engine._of_steps.values()]
    assert len(contexts) == 2
    engine.close()
    assert world.device.reserved == 0
    assert engine._plan._engine is engine._plan._runtime is None
    assert [context._context for context in contexts] == [None, None]
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.decode([0])


@pytest.mark.gpu
@pytest.mark.skipif("tensorrt" not in engines(), reason=f"no engine tensorrt: {missing_to_run()}")
@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.05), ("float16", 0.01), ("float32", 1e-3)])
def test_on_a_device_it_computes_what_numpy_does_and_steps_are_graphs(
    checkpoint: Path, dtype: str, near: float
) -> None:
    expected = load_engine(checkpoint, "numpy", max_batch=4, capacity=48)
    with closing(load_engine(checkpoint, "tensorrt", max_batch=4, capacity=48, dtype=dtype)) as engine:
        found = verdict(engine, expected, [3, 1, 4, 1, 5], tokens=40)
        assert found.dtype == dtype
        assert found.off_by < near
        assert found.passed
        assert engine.facts()["graph fallbacks"] == 0
        generated = generate(engine, [0, 2])
        assert generate(engine, [0, 2]) == generated
        assert [token for token, _ in generated] == [token for (token,) in generate(engine, [0])]  # alone
