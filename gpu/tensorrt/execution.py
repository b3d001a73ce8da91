"""A plan on the device: deserialised once, and run by contexts whose tensors are bound by name, each call checked."""

from collections.abc import Callable, Sequence
from typing import Any

from gpu.cuda.device import Device
from gpu.errors import DeviceError, PlanError
from gpu.onnx.lora import is_lora
from gpu.printable import printable
from gpu.tensorrt.library import ALIGNMENT, FLAVOUR, VERSION, Errors, make_context, trt

PREFILL, DECODE = 0, 1  # the profiles of a plan, see `gpu.tensorrt.build.build`
_SIZES = {trt.DataType.FLOAT: 4, trt.DataType.HALF: 2, trt.DataType.BF16: 2}  # bytes, of what an adapter is made of
DTYPES = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "bfloat16": trt.DataType.BF16}


class LoadedPlan:
    """The engine that a plan holds, as TensorRT has it.

    Parameters
    ----------
    engine : bytes
        What a plan's file holds behind its page.
    dtype : str
        Of the caches, see `PlanIdentity`.
    caches : sequence of str
        The names of the caches, each an input, and with `present.` before it the output that is the same memory.
    runtime : callable, optional
        Makes a runtime of a logger; `tensorrt.Runtime` if not given.

    Raises
    ------
    PlanError
        If TensorRT cannot take it, or it has not the inputs, outputs and profiles that it must have.
    """

    def __init__(
        self, engine: bytes, dtype: str, caches: Sequence[str], *, runtime: Callable[[Errors], Any] | None = None
    ) -> None:
        self._log = Errors()
        # It must outlive the engine.
        self._runtime = self._done("a runtime", runtime or trt.Runtime, self._log)
        self._engine = self._done("the plan", self._runtime.deserialize_cuda_engine, engine)
        if self._engine is None:
            raise PlanError(f"{FLAVOUR} {VERSION} cannot take the plan: {self._log.summary()}; build it again")
        types = {
            "input_ids": trt.DataType.INT32, "input_lengths": trt.DataType.INT32, "write_index": trt.DataType.INT64,
            "positions": trt.DataType.INT64, **dict.fromkeys(caches, DTYPES[dtype]),
        }  # fmt: skip
        given = {"logits": trt.DataType.FLOAT, **{f"present.{name}": DTYPES[dtype] for name in caches}}
        self.adapter: list[str] = []
        self._check_tensors(types, given)
        for name in caches:
            if self._engine.get_aliased_input_tensor(f"present.{name}") != name:
                raise PlanError(f"the plan does not write the cache {name} where it lies: build it again")
        if (profiles := self._engine.num_optimization_profiles) != 2:
            raise PlanError(f"the plan has {profiles} profiles, expected 2: build it again")

    @property
    def scratch(self) -> int:
        """How many bytes of scratch memory its contexts need, which may share them."""
        sizes: list[int] = [self._engine.get_device_memory_size_for_profile_v2(which) for which in (PREFILL, DECODE)]
        return max(sizes)

    def adapter_shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of an adapter's tensor of rank 1."""
        return tuple(1 if length < 0 else length for length in self._engine.get_tensor_shape(name))

    @property
    def adapter_size(self) -> int:
        """How many bytes the largest tensor of an adapter of rank 1 takes."""
        sizes = [0]
        for name in self.adapter:
            size = _SIZES[self._engine.get_tensor_dtype(name)]
            for length in self.adapter_shape(name):
                size *= length
            sizes.append(size)
        return max(sizes)

    def context(self, profile: int, device: Device, scratch: int) -> "Context":
        """Make the context of a profile, which has one shape if it decodes; `scratch` is an address."""
        made = self._done("a context", lambda: make_context(self._engine, one_shape=profile == DECODE))
        if made is None:
            raise DeviceError(f"{FLAVOUR} {VERSION} makes no context: {self._log.summary()}")
        return Context(made, profile, device, (scratch, self.scratch), self._log)

    def close(self) -> None:
        """Give it back; no context of it is used any more."""
        self._engine = None
        self._runtime = None

    def _check_tensors(self, taken: dict[str, Any], given: dict[str, Any]) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        expected = {**taken, **given}
        for name in names:
            if is_lora(name) and engine.get_tensor_dtype(name) in _SIZES:
                self.adapter.append(name)
                taken, expected = {**taken, name: None}, {**expected, name: engine.get_tensor_dtype(name)}
            if name not in expected:
                raise PlanError(f"the plan has a tensor {printable(name)}, which this version does not bind")
            way = trt.TensorIOMode.INPUT if name in taken else trt.TensorIOMode.OUTPUT
            if engine.get_tensor_mode(name) != way:
                raise PlanError(f"the plan does not have {printable(name)} as an {way.name.lower()}: build it again")
            if (dtype := engine.get_tensor_dtype(name)) != expected[name]:
                raise PlanError(f"the plan has {name} in {dtype}, expected {expected[name]}: build it again")
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise PlanError(f"the plan wants {printable(name)} on the host: build it again")
        if lacking := expected.keys() - set(names):
            raise PlanError(f"the plan has no {', '.join(sorted(lacking))}: build it again")

    def _done(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # pybind11's own kinds
            reason = f"{printable(error)} {self._log.summary()}"
            raise PlanError(f"{FLAVOUR} {VERSION} cannot make {what}: {reason}") from None


class Context:
    """One profile of a plan, ready to run: shapes and addresses are set when they change, and at no other time."""

    def __init__(self, context: Any, profile: int, device: Device, scratch: tuple[int, int], log: Errors) -> None:
        self._context, self._device, self._log = context, device, log
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred = False
        self._snapshot: str | None = None
        self._fixed = profile, scratch
        self._call("the profile", context.set_optimization_profile_async, profile, device.stream)
        address, size = scratch
        if size:
            self._check_aligned("the scratch memory", address)
            self._call("the scratch memory", context.set_device_memory, address, size)

    def shape(self, name: str, *lengths: int) -> None:
        """Set the shape of an input."""
        if self._shapes.get(name) != lengths:
            self._call(f"{name} of the shape {lengths}", self._context.set_input_shape, name, lengths)
            self._shapes[name] = lengths
            self._inferred, self._snapshot = False, None

    def address(self, name: str, address: int) -> None:
        """Set where a tensor lies."""
        if self._addresses.get(name) != address:
            self._check_aligned(name, address)
            self._call(f"{name} at that address", self._context.set_tensor_address, name, address)
            self._addresses[name] = address
            self._snapshot = None

    def cache(self, name: str, address: int) -> None:
        """Set where a cache lies, which is read and written there."""
        self.address(name, address)
        self.address(f"present.{name}", address)

    @property
    def snapshot(self) -> str:
        """All that was set: the profile, the scratch memory, every shape and every address, by name.

        A graph has it in it as it was when the graph was recorded.
        """
        if self._snapshot is None:
            self._snapshot = repr((self._fixed, sorted(self._shapes.items()), sorted(self._addresses.items())))
        return self._snapshot

    def ready(self) -> None:
        """See that nothing is missing to run with the shapes that were set.

        Raises
        ------
        DeviceError
            If something is.
        """
        if not self._inferred:
            self._log.told.clear()
            if lacking := self._context.infer_shapes():
                raise DeviceError(f"{FLAVOUR} {VERSION} still wants {', '.join(lacking)}: {self._log.summary()}")
            self._inferred = True

    def run(self) -> None:
        """Put the work into the stream of the device; nothing is set or looked up."""
        self._call("to run", self._context.execute_async_v3, self._device.stream)

    def close(self) -> None:
        """Give it back; none of its work is in the stream."""
        self._context = None

    def _check_aligned(self, name: str, address: int) -> None:
        if address % ALIGNMENT:
            raise DeviceError(
                f"{name} is to lie at {address:#x}, which is no multiple of {ALIGNMENT}: TensorRT does not take it"
            )

    def _call(self, what: str, call: Callable[..., Any], *arguments: Any) -> None:
        """Call TensorRT, whose methods return False, or raise, if they refuse; some return nothing."""
        self._log.told.clear()
        reason = ""
        try:
            if call(*arguments) is not False:
                return
        except Exception as error:  # pybind11's own kinds
            reason = f"{printable(error)} "
        raise DeviceError(f"{FLAVOUR} {VERSION} refuses {what}: {reason}{self._log.summary()}")
