"""What the engine asks of TensorRT, and in which order, by a stand-in whose every call is one of the real bindings."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from greedy import generate, prompted
from tensorrt_stand_in import CAN_STAND_IN, LAYERS, StandIn, check_call, names_of

from gpu import load_engine
from gpu.tensorrt.available import flavour

Load = Callable[..., Any]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_STAND_IN, reason="no g++ on x86-64, or no TensorRT")]


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


def test_calls_that_the_bindings_do_not_have_are_refused(world: StandIn, load: Load) -> None:
    context = next(iter(load()._of_steps.values()))._context
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
