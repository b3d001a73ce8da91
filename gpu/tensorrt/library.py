"""TensorRT, whichever flavour is installed, as `trt`; they have one interface, and what they differ in stands here.

The full TensorRT builds for the GPU of the machine that it runs on. TensorRT for RTX builds on any machine, with or
without a GPU, for classes of devices that are named.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from gpu.cuda.available import capability
from gpu.cuda.available import missing as no_cuda
from gpu.errors import PlanError
from gpu.printable import printable
from gpu.tensorrt.available import INSTALL, device_class, flavour

ALIGNMENT = 256  # bytes: what the memory that TensorRT is given begins at multiples of
_NO_TARGETS = ("NONE", "CURRENT")
_ALONE = "sm75"  # Turing; a plan that is for it too is, for all others, no better than one for it


def _imported() -> tuple[str, Any]:
    name = flavour()
    if name is None:
        raise PlanError(f"TensorRT is not installed: {INSTALL}")
    try:
        return name, import_module(name)
    except Exception as error:  # of many kinds: whatever the loader of its libraries raises
        raise PlanError(f"{name} is installed, and cannot be loaded: {printable(error)}") from None


FLAVOUR, trt = _imported()
VERSION: str = trt.__version__
_NAMES_DEVICES = hasattr(trt, "ComputeCapability")  # else it builds for the GPU that is there
KEEPS_TIMINGS = not _NAMES_DEVICES  # TensorRT for RTX measures where a plan runs, not where it is built


class Errors(trt.ILogger):  # type: ignore[misc, name-defined]
    """Keeps the errors that TensorRT logs, and nothing else."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.told: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Take a message; TensorRT calls it, from any thread."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.told.append(message)

    def summary(self) -> str:
        """Give the last error, which names what failed, in one line."""
        return printable(" ".join(self.told[-1].split()), 600) if self.told else "it gives no reason"


def device_classes() -> tuple[str, ...]:
    """Give the classes that plans can be built for by name: `sm89` is compute capability 8.9; none if it takes none."""
    if not _NAMES_DEVICES:
        return ()
    return tuple(name.lower() for name in trt.ComputeCapability.__members__ if name not in _NO_TARGETS)


def device_here() -> str | None:
    """Give the class of this machine's GPU, or None if there is none that can be used."""
    return None if no_cuda() is not None else device_class(capability())


def check_devices(asked: Sequence[str]) -> tuple[str, ...]:
    """Give the classes that a plan is built for, each once: those asked for, or all that share one plan without loss.

    Raises
    ------
    PlanError
        If there is no such class, it shares no plan with others, or this flavour builds for no class by name and this
        machine has no GPU.
    """
    known = device_classes()
    if not _NAMES_DEVICES:
        return (_only_device(asked),)
    wanted = tuple(dict.fromkeys(asked)) or tuple(name for name in known if name != _ALONE)
    for name in wanted:
        if name not in known:
            raise PlanError(
                f"{FLAVOUR} {VERSION} builds for no device class {printable(name, 40)}: expected some of "
                f"{', '.join(known)}"
            )
    if _ALONE in wanted and len(wanted) > 1:
        raise PlanError(f"{_ALONE} would slow the plan down for all others: build one for it alone")
    return wanted


def set_devices(config: Any, classes: Sequence[str]) -> None:
    """Tell a builder's configuration what it builds for, see `check_devices`."""
    if not _NAMES_DEVICES:
        return
    config.num_compute_capabilities = len(classes)
    for index, name in enumerate(classes):
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name.upper()], index):
            raise PlanError(f"{FLAVOUR} {VERSION} does not build for {name}")


def make_context(engine: Any, *, one_shape: bool) -> Any:
    """Make an execution context whose scratch memory is ours to give.

    TensorRT for RTX makes kernels for shapes as they come, and would take them into use whenever they are done: so that
    a step has the same bits always, they are made before it runs, if it has but `one_shape`, and else not at all.
    """
    ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not _NAMES_DEVICES:
        return engine.create_execution_context(ours)
    kinds = trt.DynamicShapesKernelSpecializationStrategy
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(ours)
    runtime_config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if one_shape else kinds.NONE
    return engine.create_execution_context(runtime_config)


def _only_device(asked: Sequence[str]) -> str:
    here = device_here()
    if here is None:
        raise PlanError(f"{FLAVOUR} builds for the GPU of its machine, and here {no_cuda()}")
    if any(name != here for name in asked):
        raise PlanError(
            f"{FLAVOUR} builds for the GPU of its machine alone, which is {here}, and "
            f"{printable(', '.join(asked))} was asked for: build there"
        )
    return here
