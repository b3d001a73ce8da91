"""TensorRT where none can run: every call is looked up in the real bindings and noted, and ONNX Runtime computes.

A plan of the stand-in is a file like any other, but the engine in it is the name of an export in float32. Its graph
runs on the very addresses that the contexts were given, which on the emulated device are the host's.
"""

import hashlib
import inspect
import os
import re
import tempfile
import typing
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from emulated_device import CAN_EMULATE, EmulatedDevice
from onnx import GraphProto, ModelProto

from gpu import Checkpoint, Engine, ModelConfig, model_fingerprint
from gpu import self_check as check_engine
from gpu.onnx.export import export, read_export
from gpu.onnx.identity import Identity
from gpu.onnx.runtime import open_session
from gpu.tensorrt.available import device_class, flavour, missing
from gpu.tensorrt.plan import PlanIdentity, write_plan

CAN_STAND_IN = CAN_EMULATE and missing() is None
Call = tuple[str, str, tuple[Any, ...]]  # of which object, what, with what
Limits = tuple[tuple[int, ...], tuple[int, ...]]
SAID = "a word of TensorRT"
ROWS, CAPACITY, POSITIONS, LAYERS = 3, 24, 28, 2  # of the engine and the plan that most tests load
_NOTHING = object()
_NUMBERS = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "typing.SupportsInt": (int,), "tuple": (tuple,), "list": (list,),
                                       "bool": (bool,), "typing_extensions.Buffer": (bytes, memoryview)}  # fmt: skip


@cache
def signatures(name: str, documentation: str) -> list[inspect.Signature]:
    """Read what pybind11 says of a function: one signature for each overload, its types as the texts that they are."""
    found = []
    for arguments in re.findall(rf"^(?:\d+\. )?{name}\((self: .*)\) -> ", documentation, re.MULTILINE):
        parameters = []
        for argument in re.split(r", (?=\w+: )", arguments):
            called, _, rest = argument.partition(": ")
            kind, equals, _ = rest.partition(" = ")
            default = None if equals else inspect.Parameter.empty
            parameters.append(
                inspect.Parameter(called, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
            )
        found.append(inspect.Signature(parameters))
    assert found, f"{name} has no signature"
    return found


def check_call(function: Any, *arguments: Any) -> None:
    """Raise TypeError, as pybind11 does, unless an overload takes these arguments."""
    for signature in signatures(function.__name__, function.__doc__):
        try:
            bound = signature.bind("self", *arguments)
        except TypeError:
            continue
        kinds = [signature.parameters[name].annotation for name in bound.arguments if name != "self"]
        if all(_is_a(argument, kind) for argument, kind in zip(arguments, kinds, strict=True)):
            return
    raise TypeError(f"{function.__name__}{arguments}: incompatible arguments, there is {function.__doc__}")


def _is_a(argument: Any, kind: str) -> bool:
    if kind in _KINDS:
        return isinstance(argument, _KINDS[kind]) and not (isinstance(argument, bool) and kind != "bool")
    name = kind.rpartition(".")[2]
    return name in {of.__name__ for of in type(argument).__mro__} or getattr(argument, "of_class", None) == name


def names_of(calls: typing.Iterable[Call]) -> list[str]:
    """Give what was called, each as `decode.set_input_shape`."""
    return [f"{of}.{name}" for of, name, _ in calls]


class Noted:
    """An object of TensorRT's as a caller sees it: what its class has in the real bindings, and nothing else."""

    def __init__(self, world: "StandIn", name: str, of_class: str, does: object) -> None:
        typing.cast(Any, self).__dict__.update(_world=world, _name=name, of_class=of_class, _does=does)

    def _real(self, name: str) -> Any:
        modules = self._world.modules[:1] if self.of_class == "IRuntimeConfig" else self._world.modules
        return [getattr(getattr(module, self.of_class), name) for module in modules]  # or AttributeError

    def __getattr__(self, name: str) -> Any:
        real = self._real(name)
        if isinstance(real[0], property):
            return getattr(self._does, name)

        def call(*arguments: Any) -> Any:
            for function in real:
                check_call(function, *arguments)
            self._world.calls.append((self._name, name, arguments))
            if (answer := self._world.answers.get(f"{self._name}.{name}", _NOTHING)) is _NOTHING:
                return getattr(self._does, name)(*arguments)
            self._world.log.log(self._world.modules[0].ILogger.ERROR, SAID)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        for real in self._real(name):
            assert isinstance(real, property)
            assert real.fset is not None
        self._world.calls.append((self._name, name, (value,)))


class StandIn:
    """Makes runtimes, as `tensorrt.Runtime` does, whose work goes into the stream of an emulated device.

    The first context that is made is called prefill, the others are decode, decode 2 and so on.

    Attributes
    ----------
    calls : list
        All methods that were called, in their order.
    answers : dict
        What methods, as `decode.set_input_shape`, return instead, or raise, having logged `SAID`.
    says : dict
        What the engine has instead of its own attributes and methods.
    known : dict
        The export that is computed for an engine that the real builder made, by its SHA-256.
    changes, changes_steps : callable
        Changes the graph of a plan, or that of its steps alone.
    """

    def __init__(self, device: EmulatedDevice, *, scratch: tuple[int, int] = (3000, 5000)) -> None:
        self.device, self.scratch = device, scratch
        self.modules: list[ModuleType] = [import_module(str(flavour()))]  # whose signatures are looked up
        self.calls: list[Call] = []
        self.answers: dict[str, Any] = {}
        self.says: dict[str, Any] = {}
        self.changes_steps: Callable[[GraphProto], None] = lambda graph: None
        self.known: dict[str, Path] = {}
        self.log: Any = None

    def __call__(self, log: Any) -> Noted:
        self.log = log
        return Noted(self, "runtime", "Runtime", _Runtime(self))

    def named(self, *methods: str) -> Iterator[Call]:
        """Give the calls of these methods."""
        return (call for call in self.calls if call[1] in methods)


class _Runtime:
    def __init__(self, world: StandIn) -> None:
        self._world = world

    def deserialize_cuda_engine(self, engine: bytes) -> Any:
        known = self._world.known.get(hashlib.sha256(engine).hexdigest())
        folder = known or Path(os.fsdecode(engine))
        if not folder.is_dir():
            return None
        return Noted(self._world, "engine", "ICudaEngine", _Engine(self._world, folder))


class _Engine:
    num_optimization_profiles = 2

    def __init__(self, world: StandIn, folder: Path) -> None:
        self._world, self.folder = world, folder
        _, self.identity, self.graph = read_export(folder)
        self.limits = profile_limits(self.identity, self.graph)
        self._contexts = 0
        self._names = [tensor.name for tensor in (*self.graph.graph.input, *self.graph.graph.output)]
        self.types = {
            tensor.name: tensor.type.tensor_type for tensor in (*self.graph.graph.input, *self.graph.graph.output)
        }
        self.num_io_tensors = len(self._names)
        steps = ModelProto.FromString(self.graph.SerializeToString())
        world.changes_steps(steps.graph)
        self.sessions = [
            open_session(graph.SerializeToString(), data=folder, threads=1) for graph in (self.graph, steps)
        ]
        self.__dict__ |= world.says

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._world.modules[0].TensorIOMode
        return mode.INPUT if name in {tensor.name for tensor in self.graph.graph.input} else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        names = {1: "FLOAT", 6: "INT32", 7: "INT64"}  # of ONNX
        return getattr(self._world.modules[0].DataType, names[self.types[name].elem_type])

    def get_tensor_location(self, name: str) -> Any:
        return self._world.modules[0].TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(length.dim_value or -1 for length in self.types[name].shape.dim)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.removeprefix("present.") if name.startswith("present.") else None

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self._world.scratch[profile]

    def create_runtime_config(self) -> Any:
        return Noted(self._world, "config", "IRuntimeConfig", _Config())

    def create_execution_context(self, how: Any) -> Any:
        number, self._contexts = self._contexts, self._contexts + 1
        name = ("prefill", "decode")[number] if number < 2 else f"decode {number}"
        return Noted(self._world, name, "IExecutionContext", _Context(self._world, self, name))


def profile_limits(identity: Identity, graph: ModelProto) -> list[dict[str, Limits]]:
    """Ask the builder's own source what shapes each profile takes: by input, the smallest and the largest."""
    from gpu.tensorrt.build import plan_identity, profiles

    found: list[dict[str, Limits]] = []

    class Profile:
        def __init__(self) -> None:
            found.append({})

        def set_shape(self, name: str, least: tuple[int, ...], usual: object, most: tuple[int, ...]) -> None:
            found[-1][name] = least, most

    inputs = [
        SimpleNamespace(
            name=tensor.name, shape=[length.dim_value or -1 for length in tensor.type.tensor_type.shape.dim]
        )
        for tensor in graph.graph.input
    ]
    network = SimpleNamespace(num_inputs=len(inputs), get_input=inputs.__getitem__)
    builder = SimpleNamespace(create_optimization_profile=Profile)
    assert len(list(profiles(builder, network, plan_identity(identity, ("sm89",))))) == 2
    return found


class _Config:
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        pass


class _Context:
    """Refuses to run unless everything was set; what is recorded into a graph keeps what was set then."""

    def __init__(self, world: StandIn, engine: _Engine, name: str) -> None:
        self._world, self._engine, self._name = world, engine, name
        self._profile: int | None = None
        self._memory = (0, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._session = engine.sessions[name != "prefill"]

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        self._shapes.clear()
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self._memory = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self._engine.get_tensor_shape(name)
        fits = len(shape) == len(fixed) and all(want in (-1, has) for want, has in zip(fixed, shape, strict=True))
        least, most = self._engine.limits[self._profile or 0].get(name, (shape, shape))
        fits = fits and all(low <= has <= high for low, has, high in zip(least, shape, most, strict=True))
        if fits:
            self._shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine.types

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._engine.graph.graph.input if tensor.name not in self._shapes]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self._world.device.stream, "another stream than the one that is open"
        lacks_memory = self._memory[1] < self._world.scratch[self._profile or 0]
        if (
            self._profile is None
            or lacks_memory
            or self.infer_shapes()
            or self._addresses.keys() < {*self._engine.types}
        ):
            return False
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        self._world.device.put(lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        binding = self._session.io_binding()
        batch = shapes["input_ids"][0]
        for tensor in self._engine.graph.graph.input:
            self._bind(binding.bind_input, tensor.name, shapes[tensor.name], addresses[tensor.name])
        for tensor in self._engine.graph.graph.output:
            shape = (batch, *self._engine.get_tensor_shape(tensor.name)[1:])
            self._bind(binding.bind_output, tensor.name, shape, addresses[tensor.name])
        self._session.run_with_iobinding(binding)

    def _bind(self, bind: Any, name: str, shape: tuple[int, ...], address: int) -> None:
        bind(name, "cpu", 0, _NUMBERS[self._engine.get_tensor_dtype(name).name], shape, address)


def write_stand_in_plan(
    folder: Path, target: Path, *, rows: int, capacity: int, positions: int | None = None, chunk: int = 256,
    lora_rank: int | None = None,
) -> Path:  # fmt: skip
    """Write a plan for the stand-in, in a new folder `target`."""
    from gpu.tensorrt.cached import positions_of
    from gpu.tensorrt.library import FLAVOUR, VERSION

    model = ModelConfig.from_folder(folder)
    positions = positions or positions_of(capacity)
    target.mkdir()
    export(
        Checkpoint.open(folder, model), model, target / "export", capacity=positions, max_batch=rows,
        spare=max(0, positions - model.max_positions), lora_rank=lora_rank,
    )  # fmt: skip
    identity = PlanIdentity(
        fingerprint=model_fingerprint(folder), flavour=FLAVOUR, version=VERSION,
        devices=("sm89", device_class(EmulatedDevice.capability)), dtype="float32", capacity=positions, max_batch=rows,
        chunk=min(chunk, positions), lora_rank=lora_rank,
    )  # fmt: skip
    write_plan(target / "model.plan", identity, memoryview(os.fsencode(target / "export")))
    return target / "model.plan"


class Ada(EmulatedDevice):
    """TensorRT for RTX runs on no data centre's GPU, as which the emulated device passes otherwise."""

    capability = (8, 9)


def stood_in(
    folder: Path, *, max_batch: int = 8, capacity: int | None = None, self_check: bool = True,
    device: EmulatedDevice | None = None, decode: str | None = None, adapters: int = 0,
    max_lora_rank: int | None = None, **_: Any,
) -> Engine:  # fmt: skip
    """Load a checkpoint into the TensorRT engine, with the stand-in."""
    from gpu.tensorrt.engine import TensorRTEngine

    model = ModelConfig.from_folder(folder)
    device = Ada() if device is None else device
    capacity = capacity or model.max_positions
    with tempfile.TemporaryDirectory() as made:
        rank = (max_lora_rank or 16) if adapters else None
        plan = write_stand_in_plan(folder, Path(made) / "plan", rows=max_batch, capacity=capacity, lora_rank=rank)
        engine = TensorRTEngine(
            model, Checkpoint.open(folder, model), rows=max_batch, capacity=capacity, device=device, plan=plan,
            decode=decode, adapters=adapters, max_lora_rank=max_lora_rank, runtime=StandIn(device),
        )  # fmt: skip
        if self_check:
            check_engine(engine)
    return engine
