"""Chooses an engine for a checkpoint, loads it and checks it."""

import math
from collections.abc import Callable, Container, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.hub import resolve_checkpoint
from gpu.checkpoint.index import Checkpoint, Progress, expected_tensors
from gpu.cuda.available import describe as describe_cuda
from gpu.cuda.available import missing as cuda_missing
from gpu.engine import Engine
from gpu.errors import CapacityError, CheckpointError, OptionError
from gpu.memory import size
from gpu.numpy.engine import NumpyEngine
from gpu.onnx.available import missing as onnx_missing
from gpu.printable import printable
from gpu.self_check import self_check as check_engine
from gpu.tensorrt.available import missing_to_run as tensorrt_missing

_DEFAULT_CAPACITY = 4096


def _cuda(*arguments: Any, **options: Any) -> Engine:
    from gpu.cuda.engine import CudaEngine  # only who has a device need wait for it

    return CudaEngine(*arguments, **options)


def _onnx(*arguments: Any, **options: Any) -> Engine:
    from gpu.onnx.engine import OnnxEngine  # it need not be installed

    return OnnxEngine(*arguments, **options)


def _tensorrt(*arguments: Any, **options: Any) -> Engine:
    from gpu.tensorrt.engine import TensorRTEngine  # it need not be installed

    return TensorRTEngine(*arguments, **options)


# The fastest first. In float32 with one thread of a CPU, onnx decodes one row 1.05 (100M) to 1.9 times (2.6M) as fast
# as numpy and 8 rows about twice as fast, and takes three quarters of its time for a prompt: `benchmarks/engines.py`.
# tensorrt stands last, where only who asks for it gets it: it builds a plan first, and was not yet measured on a GPU.
_ENGINES: dict[str, Callable[..., Engine]] = {"cuda": _cuda, "onnx": _onnx, "numpy": NumpyEngine, "tensorrt": _tensorrt}
_MISSING: dict[str, Callable[[], str | None]] = {
    "cuda": cuda_missing,
    "onnx": onnx_missing,
    "tensorrt": tensorrt_missing,
}  # of those that do not run everywhere
_DEVICES: dict[str, Callable[[], dict[str, str]]] = {"cuda": describe_cuda, "tensorrt": describe_cuda}
_OPTIONS: dict[str, tuple[str, ...]] = {  # what an engine takes beside what all take
    "cuda": ("decode", "quantize", "timeout", "adapters", "max_lora_rank"),
    "numpy": ("decode", "adapters", "max_lora_rank"),
    "onnx": ("export", "quantize", "adapters", "max_lora_rank"),
    "tensorrt": ("plan", "dtype", "decode", "timeout", "adapters", "max_lora_rank"),
}
_COUNTS = ("adapters", "max_lora_rank")  # options that are numbers of at least 1
_QUANTIZED = {"cuda": ("int8", "fp8"), "onnx": ("int8", "int4")}  # what an engine can quantise weights to
_DECODES = {
    "cuda": ("per-op", "persistent"),
    "numpy": ("alone", "together"),
    "tensorrt": ("whole", "fitted"),
}  # the ways in which an engine decodes
_WEIGHTS = {
    "cuda": "bfloat16",
    "numpy": "float32",
    "onnx": "float32",
    "tensorrt": "bfloat16",
}  # as they are unless quantised
# Bytes of float32 weights from which on it pays to start ONNX Runtime: that takes 0.25 s longer, and saves 0.65 ms a
# token of the bundled model, of 10 MiB.
_WORTH_A_START = 64 * 2**20


@dataclass(slots=True, frozen=True)
class EngineChoice:
    """An engine that was chosen, and why; as text, one line for a person."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"engine {self.name}: {self.why}"


def engines() -> tuple[str, ...]:
    """Give the names of the engines that can run here, the fastest first."""
    refused = unavailable_engines()
    return tuple(name for name in _ENGINES if name not in refused)


def unavailable_engines() -> dict[str, str]:
    """Give the names of the engines that cannot run here, and what each is missing."""
    return {name: reason for name, missing in _MISSING.items() if (reason := missing()) is not None}


def refused_engine(name: str) -> str | None:
    """Say why no engine can be loaded by this name, or give None; only a device that is asked for is looked for."""
    if name != "auto" and name not in _ENGINES:
        return f"there is no engine {name!r}: expected auto or one of {', '.join(engines())}"
    if (reason := _missing(name)) is not None:
        return f"the engine {name} cannot run here: {reason}"
    return None


def choose_engine(
    path_or_hub_id: str | Path, *, quantize: str | Sequence[str | None] | None = None, **options: Any
) -> EngineChoice:
    """Choose the fastest engine that runs here and has what is asked for; nothing is timed, so it is always the same.

    The order is that of `engines()`. Only if nothing is asked for that `numpy` lacks, `onnx` is passed over where its
    start costs more than it saves (a model of less than 64 MiB in float32), or an export of the model cannot be kept.

    Parameters
    ----------
    path_or_hub_id : str or Path
        The checkpoint, as for `load_engine`.
    quantize : str or sequence of str or None, optional
        Weights that the engine must have; several if it is to be loaded with each.
    **options
        Others that it will be given, as for `load_engine`; None is none.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be found, or its config.json is not supported.
    OptionError
        If no engine that runs here has what is asked for; the error names those that have, and what each is missing.
    """
    kinds = [kind for kind in ([quantize] if isinstance(quantize, str) else quantize or ()) if kind is not None]
    wanted = {option: value for option, value in options.items() if value is not None}
    asked = " and ".join(
        [f"the option {option}" for option in wanted] + [f"{printable(kind, 80)} weights" for kind in kinds]
    )
    folder = resolve_checkpoint(path_or_hub_id)
    model = ModelConfig.from_folder(folder)
    lacking = {name: _lacking(name, wanted, kinds) for name in _ENGINES}
    passed: dict[str, str] = {}
    words = [f"the fastest that runs here{asked and f' with {asked}'}"]
    for name, lack in lacking.items():
        missing = None if lack else _missing(name)
        reason = lack or missing or (None if lacking["numpy"] else _not_worth_it(name, model, folder))
        if reason is None:
            return EngineChoice(name, "; ".join(words))
        passed[name] = reason
        words.append(f"not {name}: {reason if missing is None else missing.partition(': ')[0]}")  # not what to install
    having = [f"{name} has, and cannot run here: {passed[name]}" for name, lack in lacking.items() if lack is None]
    if having:
        raise OptionError(f"no engine that runs here has {asked}: {'; '.join(having)}")
    raise OptionError(f"no engine has {asked}: {'; '.join(f'{name}: {lack}' for name, lack in lacking.items())}")


def engine_device(name: str) -> dict[str, str]:
    """Tell a person of the device that an engine runs on: nothing of one that needs none, or cannot run here."""
    return _DEVICES[name]() if name in _DEVICES else {}


def default_capacity(model: ModelConfig) -> int:
    """Give the tokens that a row holds unless somebody says otherwise."""
    return min(model.max_positions, _DEFAULT_CAPACITY)


def load_engine(
    path_or_hub_id: str | Path,
    engine: str = "auto",
    *,
    max_batch: int = 8,
    capacity: int | None = None,
    threads: int | None = None,
    self_check: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Engine:
    """Load a checkpoint into an engine.

    Parameters
    ----------
    path_or_hub_id : str or Path
        A folder in Hugging Face format, or a hub id.
    engine : str
        One of `engines()`, or "auto" for what `choose_engine` chooses.
    max_batch : int
        Rows of the buffers and of the cache.
    capacity : int, optional
        Tokens a row can hold, prompt included; the smaller of 4096 and the model's positions if not given.
    threads : int, optional
        Threads of a decode step; the engine's own choice if not given (numpy: 1, see `NumpyEngine`).
    self_check : bool
        Run the engine's check of itself, which costs about eight decode steps.
    progress : callable, optional
        Called with (what is done, bytes done, bytes in all): as weights are read, and with 0 of 0 bytes before
        anything else that takes long, as compiling kernels does.
    **options
        What not every engine takes: `adapters`, how many LoRA adapters there is to be room for, and `max_lora_rank`,
        of which rank at most (64 if not given), see `gpu.adapter.Adapter`; for cuda `decode`, `quantize`, `timeout`,
        see `CudaEngine`; for numpy `decode`, see `NumpyEngine`; for onnx `export`, `quantize`, see `OnnxEngine`; for
        tensorrt `plan`, `dtype`, `decode`, `timeout`, see `TensorRTEngine`. None leaves the choice to it.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be found, is damaged or not supported, or its weights do not fit into memory.
    CapacityError
        If the capacity exceeds the model's positions, or what was asked for does not fit into memory.
    SelfCheckError
        If the engine computes wrongly.
    ValueError
        If there is no engine of that name, it cannot run here, or a number makes no sense.
    OptionError
        If the engine has no such option, or not with this value.
    DeviceError
        If the device of an engine fails.
    ExportError
        If the graph that an engine runs cannot be made or kept, or is damaged.
    PlanError
        If the plan that an engine runs cannot be made or kept, is damaged, or is not for this machine.
    """
    if (refused := refused_engine(engine)) is not None:
        raise ValueError(refused)
    name = choose_engine(path_or_hub_id, **options).name if engine == "auto" else engine
    options = {option: value for option, value in options.items() if value is not None}
    if unknown := options.keys() - _OPTIONS.get(name, ()):
        raise OptionError(_without(name, unknown))
    if name in _QUANTIZED and "quantize" in options and options["quantize"] not in _QUANTIZED[name]:
        raise OptionError(
            f"the engine {name} has no {options['quantize']!r} weights: take {' or '.join(_quantizing(_QUANTIZED))}"
        )
    numbers = {"max_batch": max_batch, "capacity": capacity, "threads": threads}
    for number, value in (numbers | {name: options.get(name) for name in _COUNTS}).items():
        if value is not None and value < 1:
            raise ValueError(f"{number} is {value}, expected at least 1")
    folder = resolve_checkpoint(path_or_hub_id)
    model = ModelConfig.from_folder(folder)
    capacity = default_capacity(model) if capacity is None else capacity
    if capacity > model.max_positions:
        raise CapacityError(f"a capacity of {capacity} was asked for, the model has {model.max_positions} positions")
    if model.sliding_window is not None and model.sliding_window < capacity:
        raise CheckpointError(
            f"the model attends to a sliding window of {model.sliding_window} tokens, less than the capacity of "
            f"{capacity}, which is not supported: load it with capacity={model.sliding_window} or less"
        )
    checkpoint = Checkpoint.open(folder, model, progress)
    loaded = _ENGINES[name](model, checkpoint, rows=max_batch, capacity=capacity, threads=threads, **options)
    if self_check:
        check_engine(loaded)
    return loaded


def _missing(name: str) -> str | None:
    """Say what an engine is missing here, if it is."""
    return _MISSING[name]() if name in _MISSING else None


def _lacking(name: str, options: Mapping[str, Any], kinds: Sequence[str]) -> str | None:
    """Say which of these options and kinds of weights an engine does not have at all, if any."""
    lacking = [f"it has no option {option}" for option in options if option not in _OPTIONS.get(name, ())]
    if name in _DECODES and options.get("decode", _DECODES[name][0]) not in _DECODES[name]:
        lacking.append(f"it decodes {' or '.join(_DECODES[name])}")
    if not {*kinds} <= {*_QUANTIZED.get(name, ())}:
        lacking.append(f"its weights are {' or '.join((_WEIGHTS[name], *_QUANTIZED.get(name, ())))}")
    return " and ".join(lacking) or None


def _not_worth_it(name: str, model: ModelConfig, folder: Path) -> str | None:
    """Say why an engine that could run this checkpoint is left alone as long as another one can, if it is."""
    if name != "onnx":
        return None
    weights = 4 * sum(map(math.prod, expected_tensors(model).values()))
    if weights < _WORTH_A_START:
        return f"it starts later, and {size(weights)} of weights are too few to make up for that"
    from gpu.onnx.cached import cannot_keep  # imports what need not be waited for where it is not taken
    from gpu.onnx.fuse import cannot_fuse

    return cannot_fuse(model) or cannot_keep(folder, model)


def _without(name: str, options: Set[str]) -> str:
    """Say that an engine has no such options, what it does instead, and which engine has them."""
    having = [other for other, its in _OPTIONS.items() if options <= {*its}]
    instead = f", its weights are {_WEIGHTS[name]}" if "quantize" in options else ""
    if "quantize" in options:
        having = _quantizing(having)
    advice = f", or take the engine {' or '.join(having)}" if having else ""
    return f"the engine {name} has no option {', '.join(sorted(options))}{instead}: leave it out{advice}"


def _quantizing(names: Container[str]) -> list[str]:
    """Give those of the engines that can quantise, with what each can quantise weights to."""
    return [f"{name} ({', '.join(kinds)})" for name, kinds in _QUANTIZED.items() if name in names]
