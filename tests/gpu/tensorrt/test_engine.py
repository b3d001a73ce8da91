"""What the engine asks of TensorRT, and in which order, by a stand-in whose every call is one of the real bindings."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from full_tensorrt import full_tensorrt
from greedy import generate, prompted
from onnx import GraphProto, helper
from tensorrt_stand_in import CAN_STAND_IN, SAID, Ada, StandIn, check_call, stood_in, write_stand_in_plan
from unreliable_device import InterruptedDevice

from gpu import (
    CapacityError,
    Checkpoint,
    DeviceError,
    ModelConfig,
    OptionError,
    PlanError,
    SelfCheckError,
    engines,
    load_engine,
    self_check,
)
from gpu.onnx.lora import RANK, lora_shapes
from gpu.tensorrt.available import flavour, missing_to_run, not_for
from gpu.tensorrt.plan import PAGE
from gpu.verdict import verdict

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_STAND_IN, reason="no g++ on x86-64, or no TensorRT")]

ROWS, CAPACITY, VOCAB, LAYERS = 3, 24, 97, 2
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def plan(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in_plan(
        checkpoint, tmp_path_factory.mktemp("plan") / "made", rows=ROWS, capacity=CAPACITY, positions=28
    )


@pytest.fixture
def device() -> Ada:
    return Ada()


@pytest.fixture
def world(device: Ada, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Has every call looked up in both flavours, where the bindings of both are there."""
    made = StandIn(device)
    if not isinstance(full := full_tensorrt(tmp_path_factory.mktemp("tensorrt")), str) and full not in made.modules:
        made.modules.append(full)
    return made


@pytest.fixture
def load(world: StandIn, checkpoint: Path, plan: Path) -> Iterator[Load]:
    from gpu.tensorrt.engine import TensorRTEngine

    model = ModelConfig.from_folder(checkpoint)
    with ExitStack() as stack:

        def make(**changed: Any) -> Any:
            options: dict[str, Any] = {"rows": ROWS, "capacity": CAPACITY, "device": world.device, "plan": plan}
            opened = Checkpoint.open(checkpoint, model)
            engine = TensorRTEngine(model, opened, runtime=world, **options | changed)
            return stack.enter_context(closing(engine))

        yield make


def names_of(calls: list[Any]) -> list[str]:
    return [f"{of}.{name}" for of, name, _ in calls]


# --- the order of calls -----------------------------------------------------------------------------------------------


def test_a_plan_is_deserialised_once_and_bound_in_order(load: Load, world: StandIn, plan: Path) -> None:
    load()
    assert names_of(list(world.named("deserialize_cuda_engine"))) == ["runtime.deserialize_cuda_engine"]
    assert names_of(list(world.named("create_execution_context"))) == ["engine.create_execution_context"] * 2
    for number, of in enumerate(("prefill", "decode")):
        calls = [call for call in world.calls if call[0] == of]
        assert calls[0][1:] == ("set_optimization_profile_async", (number, 1))
        assert calls[1][1] == "set_device_memory"
        order = [name for _, name, _ in calls[2:]]
        shapes, addresses = order.count("set_input_shape"), order.count("set_tensor_address")
        assert (shapes, addresses) == (4 + 2 * LAYERS, 5 + 4 * LAYERS)
        expected = ["set_input_shape"] * shapes + ["set_tensor_address"] * addresses + ["infer_shapes"]
        assert order == expected + (["execute_async_v3"] if of == "decode" else [])  # the warm-up


def test_contexts_share_scratch_memory_that_is_enough_for_both(load: Load, world: StandIn) -> None:
    engine = load()
    (first, second) = (arguments for _, _, arguments in world.named("set_device_memory"))
    assert first == second
    address, size = first
    assert (address % 256, size) == (0, 5000)
    found = {buffer.name: buffer for buffer in engine.memory()}["scratch"]
    assert (found.address, found.shape) == (address, (5000,))


def test_past_and_present_are_one_memory_which_is_that_of_the_buffers(load: Load, world: StandIn) -> None:
    engine = load()
    buffers = {buffer.name: buffer for buffer in engine.memory()}
    bound = {name: address for of, _, (name, address) in world.named("set_tensor_address") if of == "decode"}
    caches = [name for name in bound if name.startswith("kv_cache.")]
    assert len(caches) == 2 * LAYERS
    assert all(bound[name] == bound[f"present.{name}"] for name in caches)
    assert min(bound[name] for name in caches) == buffers["kv_cache"].address
    assert len({bound[name] for name in caches}) == len(caches)
    assert bound["input_ids"] == buffers["batch_ids"].address
    assert bound["write_index"] == buffers["batch_index"].address
    assert all(address % 256 == 0 for address in bound.values())


def test_a_step_is_recorded_once_and_then_nothing_is_asked_of_tensorrt(load: Load, world: StandIn) -> None:
    engine = load()
    for row in (0, 1):
        prompted(engine, row, [3, 1, 4])
    world.calls.clear()
    engine.decode([0])
    assert names_of(world.calls) == ["decode.execute_async_v3"]
    assert world.calls[0][2] == (2,)  # the stream that is captured
    for rows in ([0], [0, 1], [1], [1, 0]):
        engine.sample(rows)
        engine.decode(rows)
    assert names_of(world.calls) == ["decode.execute_async_v3"]
    assert engine.facts()["graph fallbacks"] == 0
    engine.clear_cuda_graphs()
    engine.decode([0])
    assert names_of(world.calls) == ["decode.execute_async_v3"] * 2


def test_a_step_that_cannot_be_recorded_is_launched_plainly_and_told(
    load: Load, world: StandIn, checkpoint: Path
) -> None:
    def capture(work: Callable[[], None]) -> None:
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    world.device.capture = capture  # type: ignore[method-assign, assignment]
    engine = load()
    world.calls.clear()
    assert generate(engine, [0, 1]) == generate(load_engine(checkpoint, "numpy", capacity=CAPACITY), [0, 1])
    assert [call for call in world.calls if call[0] == "decode"] == [("decode", "execute_async_v3", (1,))] * 6
    assert engine.facts()["graph fallbacks"] == 12  # steps, and draws


def test_a_prompt_sets_only_what_differs_from_the_one_before(load: Load, world: StandIn) -> None:
    engine = load()
    prompted(engine, 0, [1, 2, 3, 4])
    world.calls.clear()
    prompted(engine, 0, [4, 3, 2, 1])
    assert names_of(world.calls) == ["prefill.execute_async_v3"]
    world.calls.clear()
    prompted(engine, 0, [4, 3])
    shapes = {name: shape for _, _, (name, shape) in world.named("set_input_shape")}
    assert shapes == {"input_ids": (1, 2), "positions": (2,)}
    assert names_of(world.calls)[2:] == ["prefill.infer_shapes", "prefill.execute_async_v3"]
    world.calls.clear()
    prompted(engine, 2, [4, 3])
    moved = [name for _, _, (name, _) in world.named("set_tensor_address")]
    assert len(moved) == 4 * LAYERS
    assert all("kv_cache." in name for name in moved)
    assert names_of(world.calls)[-1] == "prefill.execute_async_v3"
    assert not [call for call in world.calls if call[0] == "decode"]


@pytest.mark.skipif(flavour() != "tensorrt_rtx", reason="of TensorRT for RTX")
def test_kernels_are_made_for_shapes_before_a_step_or_never(load: Load, world: StandIn) -> None:
    load()
    kinds = world.modules[0].DynamicShapesKernelSpecializationStrategy
    chosen = [value for _, _, (value,) in world.named("dynamic_shapes_kernel_specialization_strategy")]
    assert chosen == [kinds.NONE, kinds.EAGER]
    ours = world.modules[0].ExecutionContextAllocationStrategy.USER_MANAGED
    assert [given for _, _, (given,) in world.named("set_execution_context_allocation_strategy")] == [ours, ours]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("prefill.set_optimization_profile_async", False, "refuses the profile"),
        ("decode.set_optimization_profile_async", RuntimeError("no such profile"), "the profile: no such profile"),
        ("decode.set_device_memory", RuntimeError("too little"), "refuses the scratch memory: too little"),
        ("prefill.set_input_shape", False, r"refuses input_ids of the shape \(1, 1\)"),
        ("decode.set_input_shape", False, r"refuses input_ids of the shape \(3, 1\)"),
        ("prefill.set_tensor_address", False, "refuses input_ids at that address"),
        ("decode.set_tensor_address", False, "refuses input_ids at that address"),
        ("decode.infer_shapes", ["positions", "lora_a.0"], r"still wants positions, lora_a\.0"),
        ("decode.execute_async_v3", False, "refuses to run"),
        ("decode.execute_async_v3", RuntimeError("CUDA error"), "refuses to run: CUDA error"),
        ("engine.create_execution_context", None, "makes no context"),
    ],
)
def test_what_tensorrt_refuses_is_told_by_name_and_leaves_nothing(
    load: Load, world: StandIn, method: str, answer: object, message: str
) -> None:
    world.answers[method] = answer
    with pytest.raises(DeviceError, match=f"{message}.*{SAID}"):
        load()
    assert world.device.reserved == 0


@pytest.mark.parametrize("answer", [None, RuntimeError("not for this GPU")])
def test_a_plan_that_tensorrt_cannot_take_is_refused_with_its_reason(
    load: Load, world: StandIn, answer: object
) -> None:
    world.answers["runtime.deserialize_cuda_engine"] = answer
    with pytest.raises(PlanError, match=f"the plan.*{'not for this GPU ' if answer else ''}.*{SAID}"):
        load()
    assert world.device.reserved == 0


def test_a_prompt_that_is_refused_is_no_token_of_the_row(load: Load, world: StandIn) -> None:
    engine = load()
    prompted(engine, 0, [1, 2])
    world.answers["prefill.execute_async_v3"] = False
    engine.write_prompt(0, [3])
    with pytest.raises(DeviceError, match=f"refuses to run: {SAID}"):
        engine.prefill([0])
    assert engine.kv_cache.length(0) == 2
    del world.answers["prefill.execute_async_v3"]
    engine.prefill([0])
    assert engine.kv_cache.length(0) == 3


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"num_optimization_profiles": 1}, "the plan has 1 profiles, expected 2"),
        ({"get_aliased_input_tensor": lambda name: None}, r"does not write the cache kv_cache\.0\.keys where it lies"),
        ({"num_io_tensors": 4 + 4 * LAYERS}, r"the plan has no present\.kv_cache\.1\.values"),
        ({"get_tensor_name": lambda index: f"x{index}\x1b[31m"}, "has a tensor x0.*, which this version does not bind"),
    ],
)
def test_an_engine_that_is_not_as_it_must_be_is_refused(
    load: Load, world: StandIn, says: dict[str, Any], message: str
) -> None:
    world.says = says
    with pytest.raises(PlanError, match=message) as caught:
        load()
    assert "\x1b" not in str(caught.value)
    assert world.device.reserved == 0


def test_tensors_of_another_dtype_way_or_place_are_refused(load: Load, world: StandIn) -> None:
    trt = world.modules[0]
    for says, message in (
        ({"get_tensor_dtype": lambda name: trt.DataType.HALF}, "has input_ids in .*HALF, expected .*INT32"),
        ({"get_tensor_mode": lambda name: trt.TensorIOMode.OUTPUT}, "does not have input_ids as an input"),
        ({"get_tensor_location": lambda name: trt.TensorLocation.HOST}, "wants input_ids on the host"),
    ):
        world.says = says
        with pytest.raises(PlanError, match=message):
            load()


def test_memory_that_is_not_aligned_is_refused_by_name(load: Load, world: StandIn) -> None:
    reserve = world.device._reserve
    world.device._reserve = lambda size: reserve(size + 16)[16:]  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"the scratch memory is to lie at 0x\w+0, which is no multiple of 256"):
        load()


def test_a_plan_whose_rows_would_not_be_aligned_is_refused(load: Load, checkpoint: Path, tmp_path: Path) -> None:
    odd = write_stand_in_plan(checkpoint, tmp_path / "odd", rows=ROWS, capacity=CAPACITY, positions=25)
    with pytest.raises(OptionError, match=r"25 positions.* export the checkpoint with a --capacity that is a multiple"):
        load(plan=odd)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ROWS + 1}, f"the plan is for {ROWS} rows: load it with max_batch={ROWS}"),
        (
            {"capacity": 29},
            r"the plan has 28 positions, 1 of them spare: load it with capacity=27, or export .* 30 and",
        ),
        ({"dtype": "bfloat16"}, "the plan is in float32: load it with that dtype"),
        ({"dtype": "float64"}, "dtype is float64: expected float32, bfloat16, float16"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(load: Load, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(**options)


def test_a_plan_for_other_devices_is_refused(load: Load, device: Ada) -> None:
    device.capability = (12, 0)
    with pytest.raises(PlanError, match="it is for sm89, sm90, the GPU is sm120"):
        load()


def test_tensorrt_for_rtx_is_for_no_gpu_of_a_data_centre(load: Load, device: Ada) -> None:
    reason = not_for("tensorrt_rtx", "sm90")
    assert reason is not None
    assert reason.startswith("TensorRT for RTX runs on GeForce and RTX GPUs, this one is sm90: pip uninstall")
    assert not_for("tensorrt", "sm90") is not_for("tensorrt_rtx", "sm89") is None
    if flavour() == "tensorrt_rtx":
        device.capability = (9, 0)
        with pytest.raises(PlanError, match="this one is sm90"):
            load()


# --- what is computed -------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_ctrl_c_at_any_launch_leaves_an_engine_that_goes_on(checkpoint: Path, after: bool) -> None:
    device = InterruptedDevice()
    device.capability = Ada.capability
    with closing(stood_in(checkpoint, max_batch=2, capacity=CAPACITY, device=device)) as engine:
        expected = generate(engine, [0, 1], 3)
        for at in range(1000):
            if at % 3 == 0:
                engine.clear_cuda_graphs()  # type: ignore[attr-defined]
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
    engine = load()
    context = engine._of_steps
    engine.close()
    assert world.device.reserved == 0
    assert engine._plan._engine is engine._plan._runtime is context._context is None
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.decode([0])


# --- on a device ------------------------------------------------------------------------------------------------------


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


# --- the real library, and the stand-in -------------------------------------------------------------------------------


def test_the_real_runtime_refuses_what_is_no_engine_in_its_own_words() -> None:
    from gpu.tensorrt.execution import LoadedPlan

    with pytest.raises(PlanError, match=r"cannot (take|make) (the plan|a runtime).*: \w+"):
        LoadedPlan(b"no engine at all" * 64, "float32", [])


def test_calls_that_the_bindings_do_not_have_are_refused(world: StandIn, load: Load) -> None:
    context = load()._of_steps._context
    for wrong in (
        lambda: context.set_input_shape("input_ids"),
        lambda: context.set_input_shape("input_ids", "1, 2"),
        lambda: context.set_tensor_address(1, "input_ids"),
        lambda: context.set_tensor_address("input_ids", 1.0),
        lambda: context.execute_async_v3(),
        lambda: context.set_optimization_profile_async(0),
        lambda: context.infer_shapes(1),
    ):
        with pytest.raises(TypeError, match="incompatible arguments"):
            wrong()
    with pytest.raises(AttributeError):
        context.set_binding_shape("input_ids", (1, 2))
    with pytest.raises(AttributeError):
        context.no_such_property = 1
    for module in world.modules:
        check_call(module.IExecutionContext.set_input_shape, "input_ids", (1, 2))
        check_call(module.IExecutionContext.set_input_shape, "input_ids", [1, 2])


MISSING = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))
import gpu
print(gpu.unavailable_engines()["tensorrt"])
print(gpu.refused_engine("tensorrt"))
print(sorted({{"tensorrt", "tensorrt_rtx", "onnx"}} & {{name for name, module in sys.modules.items() if module}}))
"""


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (("tensorrt", "tensorrt_rtx"), "TensorRT is not installed: pip install 'phasewalk[tensorrt-rtx]' (GeForce"),
        (("onnx",), "onnx is not installed: pip install 'phasewalk[tensorrt"),
        (("cuda", "cuda.core", "cuda.bindings"), "cuda-python is not installed: pip install 'phasewalk[cuda]'"),
    ],
)
def test_what_it_lacks_is_told_with_the_command_that_installs_it(hidden: tuple[str, ...], message: str) -> None:
    code = MISSING.format(hidden=hidden)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reason, refused, imported = done.stdout.splitlines()
    assert reason.startswith(message)
    assert refused == f"the engine tensorrt cannot run here: {reason}"
    assert imported == "[]"


CODE = """
import sys
from pathlib import Path
from full_tensorrt import full_tensorrt
folder = Path({folder!r})
found = full_tensorrt(folder)
if isinstance(found, str):
    print("skip", found)
    sys.exit()
sys.modules["tensorrt"] = found
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: True if name == "tensorrt" else find(name)
from checkpoints import write_checkpoint
from greedy import generate
from tensorrt_stand_in import stood_in
from gpu.tensorrt.library import FLAVOUR
engine = stood_in(write_checkpoint(folder / "checkpoint"), max_batch=2, capacity=16)
print(FLAVOUR, generate(engine, [0, 1]))
"""


def test_with_the_full_flavour_the_same_is_asked_of_it(tmp_path: Path) -> None:
    tests = Path(__file__).parents[2]
    code = f"import sys\nsys.path.insert(0, {str(tests)!r})\n" + CODE.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skip "):
        pytest.skip(done.stdout.removeprefix("skip ").strip())
    engine = load_engine(write_checkpoint(tmp_path / "again"), "numpy", max_batch=2, capacity=16)
    assert done.stdout.strip() == f"tensorrt {generate(engine, [0, 1])}"
