"""The real device: `gpu.cuda.device.Device` through cuda-python, on the first NVIDIA GPU."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cuda.core
import numpy as np
import numpy.typing as npt
from cuda.bindings import driver
from cuda.core import LaunchConfig, ObjectCode, launch

from gpu.cuda.available import missing
from gpu.cuda.compiler import compiled, compiler_version
from gpu.cuda.device import Event, Graph, Lines
from gpu.errors import DeviceError

_DEPENDENT_LAUNCH = 9  # from this major compute capability on


class CudaDevice:
    """One device, one stream of ours, one module of kernels."""

    def __init__(self) -> None:
        if (reason := missing()) is not None:
            raise DeviceError(f"the cuda engine cannot run here: {reason}")
        self._device = cuda.core.Device(0)
        self._ready = threading.local()
        self.enter()
        self._stream = self._device.create_stream()
        self._handle = driver.CUstream(int(self._stream.handle))
        self._building: Any = None  # the graph that is being recorded
        self._kernels: dict[str, Any] = {}
        self._code: Any = None
        self._configs: dict[tuple[tuple[int, int, int], int, int, int], LaunchConfig] = {}
        self._allocated: list[int] = []
        self._pinned: list[int] = []
        self.capability: tuple[int, int] = tuple(self._device.compute_capability)
        self._dependent = self.capability[0] >= _DEPENDENT_LAUNCH
        self.processors: int = self._device.properties.multiprocessor_count

    @property
    def architecture(self) -> str:
        """Give the name of the architecture as compilers have it."""
        return f"sm_{self._device.arch}" + ("a" if self.capability == (9, 0) else "")  # with what only it has

    def environment(self) -> dict[str, Any]:
        """Tell the device, and what drives and compiles for it."""
        version = _checked(driver.cuDriverGetVersion())
        return {
            "device": self._device.name,
            "compute_capability": ".".join(map(str, self._device.compute_capability)),
            "processors": self.processors,
            "cuda_driver": f"{version // 1000}.{version % 1000 // 10}",
            "cuda_core": cuda.core.__version__,
            "nvrtc": compiler_version(),
        }

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

    def build(self, source: str, defines: Sequence[str]) -> None:
        """Compile kernels, or take them from the cache, and load each."""
        options = [f"--gpu-architecture={self.architecture}", "--std=c++17", *(f"-D{define}" for define in defines)]
        self._code = ObjectCode.from_cubin(compiled(source, options))
        self._kernels.clear()

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        *parameters: int,
        shared: int = 0,
        cluster: int = 1,
    ) -> None:
        """Run a kernel, or record it; it may start before the one before it has ended, and waits by itself."""
        if kernel not in self._kernels:
            self._kernels[kernel] = self._code.get_kernel(kernel)
            handle = driver.CUkernel(int(self._kernels[kernel].handle))
            _checked(driver.cuKernelGetFunction(handle))  # loads it now
            if shared:
                most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _checked(driver.cuKernelSetAttribute(most, shared, handle, self._device.device_id))
        how = grid, threads, shared, cluster
        if how not in self._configs:
            self._configs[how] = LaunchConfig(
                grid=(grid[0] // cluster, *grid[1:]),
                cluster=cluster if cluster > 1 else None,
                block=threads,
                shmem_size=shared,
                programmatic_stream_serialization=self._dependent,
            )
        # cuda.core passes an int in the 8 bytes of a pointer.
        target = self._stream if self._building is None else self._building
        launch(target, self._configs[how], self._kernels[kernel], *parameters)

    def copy(self, source: Lines, target: Lines) -> None:
        """Copy within the device, or between it and pinned memory."""
        if source.height == 1:
            _checked(driver.cuMemcpyAsync(target.address, source.address, source.width, self._handle))
        else:
            _checked(driver.cuMemcpy2DAsync(_unified(source, target.address, target.pitch), self._handle))

    def read(self, source: Lines, target: npt.NDArray[Any]) -> None:
        """Copy into memory that is not pinned: returns when all is there."""
        address = target.ctypes.data
        if source.height == 1:
            _checked(driver.cuMemcpyDtoHAsync(address, source.address, source.width, self._handle))
        else:
            form = _unified(source, 0, source.width)
            form.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
            form.dstMemoryType, form.dstHost = driver.CUmemorytype.CU_MEMORYTYPE_HOST, address
            _checked(driver.cuMemcpy2DAsync(form, self._handle))
        _checked(driver.cuStreamSynchronize(self._handle))

    def record(self) -> Event:
        """Mark this place in the stream."""
        event: Event = self._stream.record()
        return event

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

    def close(self) -> None:
        """Wait for the stream, and give all memory back."""
        self.enter()
        self._stream.sync()
        for address in self._allocated:
            _checked(driver.cuMemFree(address))
        for address in self._pinned:
            _checked(driver.cuMemFreeHost(address))
        self._allocated.clear()
        self._pinned.clear()
        self._kernels.clear()
        self._code = None
        self._stream.close()


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
    if result != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(result)
        words = text.decode() if isinstance(text, bytes) else str(text)
        raise DeviceError(f"the device failed: {words} ({result.name})")
    return values[0] if len(values) == 1 else tuple(values)
