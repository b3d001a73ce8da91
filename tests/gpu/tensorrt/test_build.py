"""Plans that TensorRT's real builder makes of tiny random models, and how a build ends that cannot."""

import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from gpu import ExportError, PlanError, model_fingerprint
from gpu.onnx.graph import seal
from gpu.onnx.identity import DTYPES
from gpu.tensorrt.plan import PAGE, Here, read_engine, read_identity

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("builds_anywhere")]


@pytest.fixture
def one_class() -> list[str]:
    """The class of devices that a test builds for, as the flavour at hand is told it."""
    from gpu.tensorrt.library import device_classes

    return ["sm89"] if device_classes() else []


@pytest.fixture
def several_classes() -> list[str]:
    from gpu.tensorrt.library import device_classes

    if not device_classes():
        pytest.skip("the full TensorRT builds for one class of devices")
    return ["sm86", "sm89", "sm120"]


def left_beside(export: Path) -> list[str]:
    return sorted(path.name for path in export.parent.iterdir() if path.name not in ("checkpoint", "export"))


def change_graph(export: Path, change: Callable[[onnx.GraphProto], None], *, sealed: bool = False) -> None:
    """Edit a graph by hand; with `sealed`, as somebody does who does not want it to be seen."""
    model = onnx.load(export / "model.onnx", load_external_data=False)
    change(model.graph)
    if sealed:
        seal(model)
    (export / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*(("llama", dtype) for dtype in DTYPES), ("mistral", "bfloat16"), ("qwen2", "float16"), ("qwen3", "float32")],
)
def test_every_family_and_every_dtype_builds(exported: Any, one_class: list[str], family: str, dtype: str) -> None:
    from gpu.tensorrt.build import build
    from gpu.tensorrt.library import FLAVOUR, VERSION

    export = exported(family, dtype=dtype)
    plan = export.with_name("model.plan")
    made = build(export, plan, devices=one_class)
    fingerprint = model_fingerprint(export.with_name("checkpoint"))
    assert (made.fingerprint, made.flavour, made.version) == (fingerprint, FLAVOUR, VERSION)
    assert (made.dtype, made.capacity, made.max_batch, made.chunk) == (dtype, 64, 2, 64)
    found, engine, _ = read_engine(plan, Here(FLAVOUR, VERSION, made.devices[0]), fingerprint)
    assert found == made == read_identity(plan)
    assert len(engine) > (export / "weights.bin").stat().st_size
    assert left_beside(export) == ["model.plan"]


@pytest.mark.parametrize(("family", "dtype"), [("qwen2", "bfloat16"), ("qwen3", "float32")])
def test_a_plan_takes_adapters_and_says_so(exported: Any, one_class: list[str], family: str, dtype: str) -> None:
    from gpu.tensorrt.build import build

    export = exported(family, dtype=dtype, lora_rank=32, config={"head_dim": 64})
    made = build(export, export.with_name("model.plan"), devices=one_class)
    assert made.lora_rank == 32
    assert read_identity(export.with_name("model.plan")) == made
    plan = export.with_name("model.plan").read_bytes()
    assert b"lora_a.1.down_proj" in plan
    assert b"lora_b.0.q_proj" in plan
    assert dtype == "float32" or b"gemm_mha_v" in plan  # attention of a prefill is still one kernel, see below


def test_one_plan_is_for_several_classes(exported: Any, several_classes: list[str]) -> None:
    from gpu.tensorrt.build import build
    from gpu.tensorrt.library import FLAVOUR, VERSION

    export = exported("qwen3", dtype="float32")
    made = build(export, export.with_name("model.plan"), devices=several_classes)
    assert made.devices == ("sm86", "sm89", "sm120")
    for device in made.devices:
        read_engine(export.with_name("model.plan"), Here(FLAVOUR, VERSION, device), made.fingerprint)
    with pytest.raises(PlanError, match=r"it is for sm86, sm89, sm120, the GPU is sm75"):
        read_engine(export.with_name("model.plan"), Here(FLAVOUR, VERSION, "sm75"), made.fingerprint)


def test_without_a_class_it_is_for_all_that_share_a_plan(exported: Any, several_classes: list[str]) -> None:
    from gpu.tensorrt.build import build

    export = exported()
    made = build(export, export.with_name("model.plan"))
    assert set(several_classes) < set(made.devices)
    assert "sm75" not in made.devices


@pytest.mark.parametrize(("dtype", "reason"), [("bfloat16", "b16"), ("float32", "FP32 GEMM is not supported")])
def test_what_a_class_cannot_do_is_told_in_tensorrts_words(
    exported: Any, several_classes: list[str], dtype: str, reason: str
) -> None:
    from gpu.tensorrt.build import build

    export = exported(dtype=dtype)
    with pytest.raises(PlanError, match=rf"cannot build it: .*{reason}"):
        build(export, export.with_name("model.plan"), devices=["sm75"])
    assert left_beside(export) == []


def test_turing_builds_alone(exported: Any, several_classes: list[str]) -> None:
    from gpu.tensorrt.build import build

    export = exported(dtype="float16")
    with pytest.raises(PlanError, match="sm75 would slow the plan down for all others"):
        build(export, export.with_name("model.plan"), devices=["sm75", "sm89"])
    assert build(export, export.with_name("model.plan"), devices=["sm75"]).devices == ("sm75",)


def test_a_class_named_twice_counts_once_and_an_unknown_one_is_refused(
    exported: Any, several_classes: list[str]
) -> None:
    from gpu.tensorrt.build import build
    from gpu.tensorrt.library import check_devices

    assert check_devices(["sm89", "sm86", "sm89"]) == ("sm89", "sm86")
    export = exported()
    for name in ("sm90", "", "current", "none", "SM89", "\x1b[31m"):
        with pytest.raises(PlanError, match=r"builds for no device class .*: expected some of sm75") as caught:
            build(export, export.with_name("model.plan"), devices=[name])
        assert "\x1b" not in str(caught.value)
    assert left_beside(export) == []


@pytest.mark.parametrize(
    ("dtype", "head_dim"), [*((dtype, 128) for dtype in DTYPES), ("bfloat16", 80), ("float32", 64)]
)
def test_usual_sizes_of_heads_build(exported: Any, one_class: list[str], dtype: str, head_dim: int) -> None:
    from gpu.tensorrt.build import build

    export = exported(dtype=dtype, config={"head_dim": head_dim})
    build(export, export.with_name("model.plan"), devices=one_class)


@pytest.mark.parametrize(("dtype", "fused"), [("float16", True), ("bfloat16", True), ("float32", False)])
def test_attention_is_one_kernel_but_for_prefill_in_float32(
    exported: Any, several_classes: list[str], dtype: str, fused: bool
) -> None:
    """The kernels' names stand in the engine, as TensorRT for RTX 1.7 writes it; no documentation promises that."""
    from gpu.tensorrt.build import build

    export = exported(dtype=dtype, config={"head_dim": 64})
    assert build(export, export.with_name("model.plan"), devices=several_classes).devices == tuple(several_classes)
    plan = export.with_name("model.plan").read_bytes()
    found = {kernel for kernel in (b"gemm_mha_v", b"gemv_mha_v") if kernel in plan}  # of prefill, and of decode
    assert found == ({b"gemm_mha_v", b"gemv_mha_v"} if fused else {b"gemv_mha_v"})


def test_progress_is_told_and_every_phase_ends(exported: Any, one_class: list[str]) -> None:
    from gpu.tensorrt.build import build

    told: dict[str, list[tuple[int, int]]] = {}
    export = exported()
    build(
        export, export.with_name("model.plan"), devices=one_class,
        progress=lambda phase, done, total: told.setdefault(phase, []).append((done, total)),
    )  # fmt: skip
    assert len(told) > 1
    for phase, steps in told.items():
        assert steps[0][0] == 0, phase
        assert steps[-1][0] == steps[-1][1], phase


def test_who_is_told_can_end_the_build(exported: Any, one_class: list[str]) -> None:
    from gpu.tensorrt.build import build

    class Enough(Exception):
        pass

    calls = 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise Enough

    export = exported()
    with pytest.raises(Enough):
        build(export, export.with_name("model.plan"), devices=one_class, progress=progress)
    assert calls == 20
    assert left_beside(export) == []


def test_ctrl_c_ends_the_build(exported: Any, one_class: list[str]) -> None:
    import _thread

    from gpu.tensorrt.build import build

    calls = 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            assert threading.current_thread() is not threading.main_thread()
            _thread.interrupt_main()
            threading.Event().wait(1)  # until it is heeded

    export = exported()
    with pytest.raises(KeyboardInterrupt):
        build(export, export.with_name("model.plan"), devices=one_class, progress=progress)
    assert calls < 100
    assert left_beside(export) == []


def test_the_workspace_limit_reaches_tensorrt(exported: Any, one_class: list[str], monkeypatch: Any) -> None:
    from gpu.tensorrt import build as module
    from gpu.tensorrt.library import trt

    seen: list[Any] = []
    built = module._built

    def spy(builder: Any, network: Any, config: Any, *rest: Any) -> Any:
        seen.append((config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE), config.max_aux_streams,
                     config.num_optimization_profiles))  # fmt: skip
        return built(builder, network, config, *rest)

    monkeypatch.setattr(module, "_built", spy)
    export = exported()
    module.build(export, export.with_name("model.plan"), devices=one_class, workspace=64 << 20)
    assert seen == [(64 << 20, 0, 2)]


# --- exports that are not what they were ------------------------------------------------------------------------------


def test_a_graph_edited_by_hand_is_refused(exported: Any) -> None:
    from gpu.tensorrt.build import build

    export = exported()

    def other_epsilon(graph: onnx.GraphProto) -> None:
        norm = next(node for node in graph.node if node.op_type == "RMSNormalization")
        next(attribute for attribute in norm.attribute if attribute.name == "epsilon").f = 0.5

    change_graph(export, other_epsilon)
    with pytest.raises(ExportError, match=r"model\.onnx is not the graph that was exported: it was changed"):
        build(export, export.with_name("model.plan"))
    assert left_beside(export) == []


def test_what_is_said_of_a_graph_cannot_be_edited_either(exported: Any) -> None:
    from gpu.tensorrt.build import build

    export = exported()
    model = onnx.load(export / "model.onnx", load_external_data=False)
    next(entry for entry in model.metadata_props if entry.key == "phasewalk.max_batch").value = "3"
    (export / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="it was changed"):
        build(export, export.with_name("model.plan"))


def test_an_input_that_this_version_knows_nothing_of_is_refused(exported: Any, one_class: list[str]) -> None:
    from gpu.tensorrt.build import build

    export = exported()

    def more(graph: onnx.GraphProto) -> None:
        graph.input.append(onnx.helper.make_tensor_value_info("lora", onnx.TensorProto.FLOAT, ["rank", 8]))
        graph.output.append(onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["rank", 8]))
        graph.node.append(onnx.helper.make_node("Neg", ["lora"], ["out"], name="negated"))

    change_graph(export, more, sealed=True)
    with pytest.raises(PlanError, match="the graph has an input lora, which this version does not bind"):
        build(export, export.with_name("model.plan"), devices=one_class)


@pytest.mark.parametrize(
    ("rank", "said", "message"),
    [
        (None, "8", "takes 0 matrices of adapters, the export says that it takes adapters of rank 8 at most"),
        (8, "none", "takes 28 matrices of adapters, the export says that it takes none"),
        (8, "1" + 40 * "0", r"lora-rank of 10+ .*, a plan can have 131072"),
        (8, "-1", "metadata makes no sense: lora_rank is -1, expected at least 1"),
    ],
)
def test_adapters_that_the_graph_takes_are_those_that_it_is_said_to_take(
    exported: Any, one_class: list[str], rank: int | None, said: str, message: str
) -> None:
    from gpu.tensorrt.build import build

    export = exported(lora_rank=rank)
    model = onnx.load(export / "model.onnx", load_external_data=False)
    next(entry for entry in model.metadata_props if entry.key == "phasewalk.lora_rank").value = said
    seal(model)
    (export / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises((PlanError, ExportError), match=message):
        build(export, export.with_name("model.plan"), devices=one_class)
    assert left_beside(export) == []


def test_an_adapter_of_one_rank_alone_is_refused(exported: Any, one_class: list[str]) -> None:
    from gpu.tensorrt.build import build

    export = exported(lora_rank=8)

    def fixed(graph: onnx.GraphProto) -> None:
        for entry in graph.input:
            if entry.name in ("lora_a.0.q_proj", "lora_b.0.q_proj"):
                for dim in entry.type.tensor_type.shape.dim:
                    if dim.dim_param:
                        dim.dim_value = 4

    change_graph(export, fixed, sealed=True)
    with pytest.raises(
        PlanError, match=r"lora_a\.0\.q_proj has the shape \(4, 32\), expected two .*, one of them open"
    ):
        build(export, export.with_name("model.plan"), devices=one_class)


def test_the_parser_names_the_node_that_it_refuses(exported: Any, one_class: list[str]) -> None:
    from gpu.tensorrt.build import build

    export = exported()

    def unknown(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "Sigmoid").op_type = "NoSuchOperator"

    change_graph(export, unknown, sealed=True)
    with pytest.raises(PlanError, match=r"does not read .*model\.layers\.0\.mlp\.sigmoid \(NoSuchOperator\): "):
        build(export, export.with_name("model.plan"), devices=one_class)
    assert left_beside(export) == []


def test_a_cache_that_is_no_update_in_place_is_refused(exported: Any, one_class: list[str]) -> None:
    from gpu.tensorrt.build import build

    export = exported()

    def swap(graph: onnx.GraphProto) -> None:
        keys, values = [node for node in graph.node if node.op_type == "TensorScatter"][:2]
        keys.input[0], values.input[0] = values.input[0], keys.input[0]

    change_graph(export, swap, sealed=True)
    with pytest.raises(PlanError, match="does not update the KV cache of this graph where it lies"):
        build(export, export.with_name("model.plan"), devices=one_class)


@pytest.mark.parametrize("place", [{"location": "../checkpoint/config.json"}, {"location": "/etc/passwd"},
                                   {"offset": "-1"}, {"length": "9" * 30}, {"offset": "x"}])  # fmt: skip
def test_a_graph_names_no_other_file(exported: Any, place: dict[str, str]) -> None:
    from gpu.tensorrt.build import build

    export = exported()

    def elsewhere(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.external_data)
        for entry in tensor.external_data:
            entry.value = place.get(entry.key, entry.value)

    change_graph(export, elsewhere, sealed=True)
    with pytest.raises(ExportError, match=r"does not lie in weights\.bin"):
        build(export, export.with_name("model.plan"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda export: (export / "model.onnx").unlink(), r"it holds no model\.onnx"),
        (lambda export: (export / "weights.bin").unlink(), r"it holds no weights\.bin"),
        (lambda export: (export / "model.onnx").write_bytes(b"\xff" * 99), r"is no ONNX file"),
        (lambda export: (export / "model.onnx").write_bytes(b""), r"its metadata names no format"),
        (lambda export: (export / "weights.bin").open("r+b").truncate(999), r"weights\.bin has 999 bytes, expected"),
        (lambda export: (export / "weights.bin").write_bytes(bytes((export / "weights.bin").stat().st_size)),
         r"weights\.bin does not hold what was exported"),
    ],
)  # fmt: skip
def test_a_damaged_export_is_refused(exported: Any, damage: Callable[[Path], object], message: str) -> None:
    from gpu.tensorrt.build import build

    export = exported()
    damage(export)
    with pytest.raises(ExportError, match=rf"cannot be used: .*{message}.*export the checkpoint again"):
        build(export, export.with_name("model.plan"))
    assert left_beside(export) == []


@pytest.mark.parametrize("option", ["capacity", "max_batch"])
def test_an_export_for_any_size_is_refused(exported: Any, option: str) -> None:
    from gpu.tensorrt.build import build

    export = exported(**{option: None})
    name = option.replace("_", "-")
    with pytest.raises(PlanError, match=f"for any {name}, a plan is for one: export the checkpoint with --{name}"):
        build(export, export.with_name("model.plan"))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_an_export_of_codes_is_refused(exported: Any, quantize: str) -> None:
    from gpu.tensorrt.build import build

    export = exported(quantize=quantize, dtype="float32")
    with pytest.raises(PlanError, match=f"has {quantize} weights, .*: export the checkpoint without --quantize"):
        build(export, export.with_name("model.plan"))
    assert left_beside(export) == []


def test_an_export_for_absurdly_many_rows_is_refused(exported: Any) -> None:
    from gpu.tensorrt.build import build

    export = exported(max_batch=10**40)
    with pytest.raises(PlanError, match=r"max-batch of 10000.*, a plan can have 4096"):
        build(export, export.with_name("model.plan"))


# --- where it is to lie -----------------------------------------------------------------------------------------------


def test_too_little_disk_is_told_before_anything_is_built(exported: Any, monkeypatch: Any) -> None:
    from gpu.tensorrt import build as module

    export = exported()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(PlanError, match=r"takes more than .* KiB, and 1000 bytes are free where .*model\.plan"):
        module.build(export, export.with_name("model.plan"))
    assert left_beside(export) == []


def test_too_little_memory_is_told_before_anything_is_built(exported: Any, monkeypatch: Any) -> None:
    from gpu.tensorrt import build as module

    export = exported()
    monkeypatch.setattr(module, "machine_memory", lambda: 1000)
    with pytest.raises(PlanError, match=r"takes about .* KiB of memory, this machine has 1000 bytes"):
        module.build(export, export.with_name("model.plan"))


def test_a_disk_that_fills_up_leaves_nothing(exported: Any, one_class: list[str]) -> None:
    import resource

    from gpu.tensorrt.build import build

    export = exported()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE * 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            build(export, export.with_name("model.plan"), devices=one_class)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_beside(export) == []


def test_what_stands_there_is_kept(exported: Any) -> None:
    from gpu.tensorrt.build import build

    export = exported()
    export.with_name("model.plan").write_text("mine")
    with pytest.raises(PlanError, match="exists already"):
        build(export, export.with_name("model.plan"))
    assert export.with_name("model.plan").read_text() == "mine"


def test_two_builds_at_once_leave_one_whole_plan(exported: Any, one_class: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from gpu.tensorrt.build import build
    from gpu.tensorrt.library import FLAVOUR, VERSION

    export = exported()
    plan = export.with_name("model.plan")
    with ThreadPoolExecutor(2) as pool:
        builds = [pool.submit(build, export, plan, devices=one_class) for _ in range(2)]
    failures = [failure for one in builds if (failure := one.exception()) is not None]
    assert all(isinstance(failure, PlanError) and "exists already" in str(failure) for failure in failures)
    made = read_identity(plan)
    read_engine(plan, Here(FLAVOUR, VERSION, made.devices[0]), made.fingerprint)
    assert left_beside(export) == ["model.plan"]
