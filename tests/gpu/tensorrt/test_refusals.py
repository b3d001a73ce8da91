"""What TensorRT refuses, and what a plan lacks, is told by name, and nothing is left on the device."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from greedy import prompted
from tensorrt_stand_in import CAN_STAND_IN, CAPACITY, LAYERS, ROWS, SAID, Ada, StandIn, write_stand_in_plan

from gpu import DeviceError, OptionError, PlanError
from gpu.tensorrt.available import flavour, not_for

Load = Callable[..., Any]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_STAND_IN, reason="no g++ on x86-64, or no TensorRT")]


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


def test_the_real_runtime_refuses_what_is_no_engine_in_its_own_words() -> None:
    from gpu.tensorrt.execution import LoadedPlan

    with pytest.raises(PlanError, match=r"cannot (take|make) (the plan|a runtime).*: \w+"):
        LoadedPlan(b"no engine at all" * 64, "float32", [])


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
