"""Builds plans: read `build` from top to bottom."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from gpu.errors import PlanError
from gpu.memory import machine_memory, size
from gpu.onnx.data import stored_size
from gpu.onnx.export import read_export
from gpu.onnx.identity import Identity
from gpu.onnx.lora import is_lora
from gpu.printable import printable
from gpu.tensorrt.library import FLAVOUR, KEEPS_TIMINGS, VERSION, Errors, check_devices, set_devices, trt
from gpu.tensorrt.monitor import BuildProgress, Monitor
from gpu.tensorrt.network import inputs, parse
from gpu.tensorrt.plan import PlanIdentity, check_absent, write_plan
from gpu.tensorrt.timings import Timings

CHUNK = 256  # tokens of a prompt that go through the graph together, as in the other engines
_COPIES = 3  # of the weights that are in memory at least, as measured
_HEED = 0.1  # seconds until Ctrl-C is heeded, where it interrupts no wait
_MOST_ROWS = 4096
_MOST_POSITIONS = 2**24
_MOST_RANK = 2**17
_USUAL_RANK = 16  # of adapters


def build(
    export: Path,
    target: Path,
    *,
    devices: Sequence[str] = (),
    workspace: int | None = None,
    progress: BuildProgress | None = None,
) -> PlanIdentity:
    """Compile an export to a plan: one engine, with a profile for prefill, number 0, and one for decode, number 1.

    Both have all inputs of the graph, see `gpu.onnx.graph.model_of`; an adapter may have any rank up to that of the
    export. They share the weights. Ctrl-C ends the build at its next step.

    Parameters
    ----------
    export : Path
        The folder that `gpu.onnx.export.export` made.
    target : Path
        The file to make.
    devices : sequence of str, optional
        Classes that the plan is for, as `sm89` for compute capability 8.9. Without any: TensorRT for RTX builds for all
        but Turing, TensorRT for the GPU of this machine.
    workspace : int, optional
        Bytes that an operation may take for itself on the device at most.
    progress : BuildProgress, optional
        Called as the build goes on, from another thread.

    Returns
    -------
    PlanIdentity
        What the plan says of itself.

    Raises
    ------
    ExportError
        If the export is damaged, was changed, or is of another version.
    PlanError
        If something stands at `target`, the disk has too little room, TensorRT is not installed or does not build this.
    OSError
        If the plan cannot be written.
    """
    check_absent(target)
    classes = check_devices(devices)
    _, exported, graph = read_export(export)
    identity = plan_identity(exported, classes)
    _check_room(stored_size(graph), target)
    log = Errors()
    builder = _builder(log)
    network = builder.create_network(0)  # strongly typed, as every network is from version 11 on
    parse(network, graph, exported, export, log)
    config = builder.create_builder_config()
    config.max_aux_streams = 0
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    set_devices(config, classes)
    for profile in profiles(builder, network, identity):
        if config.add_optimization_profile(profile) < 0:
            raise PlanError(f"{FLAVOUR} {VERSION} takes no such profile: {log.summary()}")
    timings = Timings(classes[0]) if KEEPS_TIMINGS else None
    if timings is not None:
        timings.give(config)
    monitor = Monitor(progress)
    config.progress_monitor = monitor
    engine = _built(builder, network, config, monitor, log)
    if timings is not None:
        timings.keep()
    with memoryview(engine) as engine_bytes:
        write_plan(target, identity, engine_bytes)
    return identity


def plan_identity(exported: Identity, classes: tuple[str, ...]) -> PlanIdentity:
    """Give what the plan of an export says of itself; PlanError if it cannot be one of that export."""
    if exported.quantize is not None:
        raise PlanError(
            f"the export has {exported.quantize} weights, which ONNX Runtime alone multiplies by: export the "
            f"checkpoint without --quantize"
        )
    capacity = _fixed("capacity", exported.capacity, _MOST_POSITIONS)
    rank = exported.lora_rank
    return PlanIdentity(
        fingerprint=exported.fingerprint,
        flavour=FLAVOUR,
        version=VERSION,
        devices=classes,
        dtype=exported.dtype,
        capacity=capacity,
        max_batch=_fixed("max-batch", exported.max_batch, _MOST_ROWS),
        chunk=min(CHUNK, capacity),
        lora_rank=None if rank is None else _fixed("lora-rank", rank, _MOST_RANK),
    )


def profiles(builder: Any, network: Any, plan: PlanIdentity) -> Iterator[Any]:
    """Say for which shapes the engine is to be good: those of prefill, and then those of decode."""
    for chunk, usual_rows in ((plan.chunk, 1), (1, plan.max_batch)):
        profile = builder.create_optimization_profile()
        for name, tensor in inputs(network).items():
            shapes: list[tuple[int, ...]]  # the smallest, the usual, the largest
            if name == "input_ids":
                shapes = [(1, 1), (usual_rows, chunk), (plan.max_batch, chunk)]
            elif name == "positions":
                shapes = [(1,), (plan.capacity,), (plan.capacity,)]
            elif plan.lora_rank is not None and is_lora(name):
                ranks = (1, min(_USUAL_RANK, plan.lora_rank), plan.lora_rank)
                shapes = [tuple(rank if size < 0 else size for size in tensor.shape) for rank in ranks]
            elif name not in ("input_lengths", "write_index") and not name.startswith("kv_cache."):
                raise PlanError(f"the graph has an input {printable(name)}, which this version does not bind")
            else:
                shapes = [(rows, *tuple(tensor.shape)[1:]) for rows in (1, usual_rows, plan.max_batch)]
            profile.set_shape(name, *shapes)
        yield profile


def _fixed(name: str, value: int | None, most: int) -> int:
    if value is None:
        raise PlanError(f"the export is for any {name}, a plan is for one: export the checkpoint with --{name}")
    if value > most:
        raise PlanError(f"the export has a {name} of {printable(value, 40)}, a plan can have {most}")
    return value


def _check_room(needed: int, target: Path) -> None:
    """The plan holds the weights, and some kernels beside them; while it is built, some copies are in memory."""
    if (memory := machine_memory()) < _COPIES * needed:
        raise PlanError(
            f"to build the plan takes about {size(_COPIES * needed)} of memory, this machine has {size(memory)}: build "
            f"on a larger one"
        )
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise PlanError(
            f"the plan takes more than {size(needed)}, and {size(free)} are free where {printable(target)} is to lie: "
            f"make room or choose another place"
        )


def _builder(log: Errors) -> Any:
    try:
        return trt.Builder(log)
    except Exception as error:  # pybind11's own kind
        raise PlanError(f"{FLAVOUR} {VERSION} cannot build here: {printable(error)} {log.summary()}") from None


def _built(builder: Any, network: Any, config: Any, monitor: Monitor, log: Errors) -> Any:
    """Build in another thread, so that Ctrl-C is heeded in this one and never breaks into TensorRT."""
    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt") as pool:
        building = pool.submit(builder.build_serialized_network, network, config)
        try:
            while not wait([building], _HEED).done:
                pass
            engine = building.result()
        except BaseException:
            monitor.end()
            raise
    if monitor.failure is not None:
        raise monitor.failure
    if engine is None:
        raise PlanError(f"{FLAVOUR} {VERSION} cannot build it: {log.summary()}")
    return engine
