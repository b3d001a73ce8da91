"""The real device: `gpu.cuda.device.Device` through cuda-python, on the first NVIDIA GPU."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cuda.core
import numpy as np
import numpy.typing as npt
from cuda.bindings import driver
from cuda.core import EventOptions, LaunchConfig, ObjectCode, launch

from gpu.cuda.available import missing
from gpu.cuda.compiler import compiled, compiler_version
from gpu.cuda.device import Event, Graph, Lines, Module, Moment
from gpu.errors import DeviceError

_SHARED_BYTES = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEPENDENT_LAUNCH = 9  # from this major compute capability on


class CudaDevice:
    """One device, one stream of ours, modules of kernels."""

    def __init__(self) -> None:
        if (reason := missing()) is not None:
            raise DeviceError(f"no device can be used here: {reason}")
        self._device = cuda.core.Device(0)
        self._ready = threading.local()
        self._handle = driver.CUstream(0)  # until there is one of ours
        self.enter()
        if (reason := self.fault()) is not None:
            raise DeviceError(f"the device cannot be used in this process any more, start another: {reason}")
        self._stream = self._device.create_stream()
        self._handle = driver.CUstream(int(self._stream.handle))
        self._building: Any = None  # the graph that is being recorded
        self._kernels: dict[str, Any] = {}
        self._codes: list[Any] = []
        self._configs: dict[tuple[Any, ...], LaunchConfig] = {}
        self._allocated: list[int] = []
        self._pinned: list[int] = []
        self.capability: tuple[int, int] = tuple(self._device.compute_capability)
        self._dependent = self.capability[0] >= _DEPENDENT_LAUNCH
        self.processors: int = self._device.properties.multiprocessor_count
        self.cache: int = self._device.properties.l2_cache_size

    @property
    def architecture(self) -> str:
        """Give the name of the architecture as compilers have it."""
        return f"sm_{self._device.arch}" + ("a" if self.capability == (9, 0) else "")

    def environment(self) -> dict[str, Any]:
        """Tell the device, and what drives and compiles for it."""
        version = _checked(driver.cuDriverGetVersion())
        return {
            "device": self._device.name,
            "compute_capability": ".".join(map(str, self.capability)),
            "processors": self.processors,
            "cuda_driver": f"{version // 1000}.{version % 1000 // 10}",
            "cuda_core": cuda.core.__version__,
            "nvrtc": compiler_version(),
        }

    @property
    def stream(self) -> int:
        """Give the handle of the stream, or of the one that is captured."""
        return int((self._stream if self._building is None else self._building.stream).handle)

    def enter(self) -> None:
        """Make the device this thread's."""
        if not getattr(self._ready, "set", False):
            self._device.set_current()
            self._ready.set = True

    def memory_free(self) -> int:
        """Count the bytes that are free on the device."""
        free, _ = _checked(driver.cuMemGetInfo())
        return int(free)

    def allocate(self, size: int) -> int:
        """Reserve device memory, all zero."""
        pointer = _checked(driver.cuMemAlloc(size))
        self._allocated.append(int(pointer))
        _checked(driver.cuMemsetD8Async(pointer, 0, size, self._handle))
        return int(pointer)

    def pinned(self, size: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Reserve pinned memory of the host."""
        address = int(_checked(driver.cuMemHostAlloc(size, 0)))
        self._pinned.append(address)
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def release(self, address: int) -> None:
        """Give memory back."""
        if address in self._pinned:
            self._pinned.remove(address)
            _checked(driver.cuMemFreeHost(address))
        else:
            self._allocated.remove(address)
            _checked(driver.cuMemFree(address))

    def build(self, modules: Sequence[Module], *, compiling: Callable[[], None]) -> None:
        """Compile kernels, or take them from the cache, and load each."""
        self._codes += map(ObjectCode.from_cubin, compiled(modules, self.architecture, compiling=compiling))

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *parameters: int, shared: int = 0,
        together: bool = False, behind: bool = False,
    ) -> None:  # fmt: skip
        """Run a kernel, or record it; it may start before the one before it has ended, and waits by itself.

        Not one whose blocks must run together, or that is behind others' work: it begins when all before it has ended.
        """
        if kernel not in self._kernels:
            self._kernels[kernel] = self._loaded(kernel, shared)
        form = (grid, threads, shared, together, behind)
        if form not in self._configs:
            self._configs[form] = LaunchConfig(
                grid=grid, block=threads, shmem_size=shared, is_cooperative=together,
                programmatic_stream_serialization=self._dependent and not (together or behind),
            )  # fmt: skip
        # cuda.core passes an int in the 8 bytes of a pointer.
        target = self._stream if self._building is None else self._building
        launch(target, self._configs[form], self._kernels[kernel], *parameters)

    def _loaded(self, name: str, shared: int) -> Any:
        kernel = next(found for code in reversed(self._codes) if (found := _kernel(code, name)) is not None)
        handle = driver.CUkernel(int(kernel.handle))
        _checked(driver.cuKernelGetFunction(handle))  # loads it now
        if shared:
            _checked(driver.cuKernelSetAttribute(_SHARED_BYTES, shared, handle, driver.CUdevice(0)))
        return kernel

    def copy(self, source: Lines, target: Lines) -> None:
        """Copy within the device, or between it and pinned memory."""
        if source.height == 1:
            _checked(driver.cuMemcpyAsync(target.address, source.address, source.width, self._handle))
        else:
            _checked(driver.cuMemcpy2DAsync(_unified(source, target.address, target.pitch), self._handle))

    def clear(self, target: Lines) -> None:
        """Make device memory all zero."""
        pitch = target.pitch or target.width
        _checked(driver.cuMemsetD2D8Async(target.address, pitch, 0, target.width, target.height, self._handle))

    def record(self) -> Event:
        """Mark this place in the stream."""
        event: Event = self._stream.record()
        return event

    def moment(self) -> Moment:
        """Mark this place in the stream, and have the device look at its clock there."""
        timed = EventOptions(True)  # the first option; its name differs between versions
        return _Moment(self._stream.record(options=timed))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record launches."""
        builder = self._device.create_graph_builder()
        self._building = builder.begin_building()
        try:
            work()
        finally:
            self._building = None
            builder.end_building()
        return _Graph(builder.complete(), self._stream)

    def fault(self) -> str | None:
        """Give the error that stays with the process, if there is one: every call would have it."""
        (result,) = driver.cuStreamQuery(self._handle)
        healthy = (driver.CUresult.CUDA_SUCCESS, driver.CUresult.CUDA_ERROR_NOT_READY)
        return None if result in healthy else _words(result)

    def close(self) -> None:
        """Give all memory back."""
        self.enter()
        for address in self._allocated:
            _checked(driver.cuMemFree(address))
        for address in self._pinned:
            _checked(driver.cuMemFreeHost(address))
        self._allocated.clear()
        self._pinned.clear()
        self._kernels.clear()
        self._codes.clear()
        self._stream.close()


def _kernel(code: Any, name: str) -> Any:
    try:
        return code.get_kernel(name)
    except Exception:  # of cuda.core: it has none of that name
        return None


class _Moment:
    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    @property
    def is_done(self) -> bool:
        return bool(self._event.is_done)

    def since(self, earlier: "_Moment") -> float:
        return float((self._event - earlier._event) * 1e6)  # CUDA counts in ms


class _Graph:
    __slots__ = ("_graph", "_stream")

    def __init__(self, graph: Any, stream: Any) -> None:
        self._graph, self._stream = graph, stream

    def launch(self) -> None:
        self._graph.launch(self._stream)


def _unified(source: Lines, target: int, pitch: int) -> Any:
    """Describe a copy of lines between addresses that the driver knows the place of."""
    form = driver.CUDA_MEMCPY2D()
    form.srcMemoryType = form.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_UNIFIED
    form.srcDevice, form.dstDevice = source.address, target
    form.srcPitch, form.dstPitch = source.pitch, pitch
    form.WidthInBytes, form.Height = source.width, source.height
    return form


def _checked(answer: tuple[Any, ...]) -> Any:
    """Give what a call of the driver returned, or raise what it says went wrong."""
    result, *values = answer
    if result == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError(_words(result))
    if result != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the device failed: {_words(result)}")
    return values[0] if len(values) == 1 else tuple(values)


def _words(result: Any) -> str:
    _, text = driver.cuGetErrorString(result)
    return f"{text.decode() if isinstance(text, bytes) else text} ({result.name})"
