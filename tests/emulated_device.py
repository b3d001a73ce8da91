"""A device that is none: the engine's kernels, built for the CPU by g++, one thread of a block after the other.

Slow, and its sums round otherwise than tensor cores do, but the engine above it and every index, barrier and exchange
of its kernels are those that run on a GPU.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu import Checkpoint, Engine, ModelConfig
from gpu import self_check as check_engine
from gpu.cuda.device import Event, Graph, Lines, Module, Moment
from gpu.cuda.engine import CudaEngine

HEADER = Path(__file__).parent / "gpu" / "cuda" / "emulated_cuda.hpp"
CAN_EMULATE = shutil.which("g++") is not None and platform.machine() == "x86_64" and os.name == "posix"
_FLAGS = (
    "-std=c++17", "-O1", "-mfma", "-ffp-contract=off", "-shared", "-fPIC", "-w",
    "-fno-gnu-unique", "-Wl,-Bsymbolic",  # shared memory of the same name is each library's own
)  # fmt: skip
_OF_WIDE_TILES = re.compile(r'(?m)^#line 1 "\w+_\d+x\d+\.cu"')
_BUILT = Path(tempfile.gettempdir()) / f"phasewalk-emulated-{os.getuid() if hasattr(os, 'getuid') else 0}"


def _source(modules: Sequence[Module]) -> str:
    """Give the text of modules in one: what several begin with is compiled once."""
    parts = (part for module in modules for part in re.split(r"(?m)^(?=#line 1 )", module.source))
    return "".join([HEADER.read_text(), *dict.fromkeys(parts)])


def _place(text: str, defines: Sequence[str]) -> Path:
    """Say where the library of such a text lies once it is compiled."""
    name = hashlib.sha256("\0".join([text, *defines, *_FLAGS]).encode()).hexdigest()
    return _BUILT / f"{name}.so"


def _compile(text: str, defines: Sequence[str], library: Path) -> None:
    _BUILT.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
        code, result = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        code.write_text(text)
        macros = [f"-D{define}" for define in defines]
        subprocess.run(["g++", *_FLAGS, *macros, "-o", str(result), str(code)], check=True)
        result.replace(library)


@cache
def _stacks(size: int) -> np.ndarray:
    """Give the memory that the threads of every library take turns in: one of each would be more than a machine has."""
    return np.empty(size, np.uint8)


class _Event:
    is_done = True

    def __init__(self) -> None:
        self._reached = time.perf_counter_ns()

    def since(self, earlier: "_Event") -> float:
        return self._reached - earlier._reached


class _Graph:
    def __init__(self, recorded: list[Callable[[], None]]) -> None:
        self._recorded = recorded

    def launch(self) -> None:
        for work in self._recorded:
            work()


class EmulatedDevice:
    """See `gpu.cuda.device.Device`; everything is done at once."""

    processors = 4
    capability = (9, 0)
    cache = 1 << 12
    _one_at_a_time = threading.Lock()  # a kernel's shared memory is a static variable of the library

    def __init__(self) -> None:
        self._memory: list[np.ndarray] = []
        self._recording: list[Callable[[], None]] | None = None
        self._libraries: list[Any] = []
        self._later: list[Module] = []  # compiled once one of their kernels is launched

    @property
    def reserved(self) -> int:
        """Bytes of its memory, pinned memory included."""
        return sum(memory.nbytes for memory in self._memory)

    def environment(self) -> dict[str, Any]:
        return {"device": "emulated"}

    @property
    def stream(self) -> int:
        return 2 if self._recording is not None else 1

    def put(self, work: Callable[[], None]) -> None:
        """Put the work of others into the stream."""
        if self._recording is not None:
            self._recording.append(work)
        else:
            work()

    def enter(self) -> None:
        pass

    def memory_free(self) -> int:
        return 1 << 32

    def allocate(self, size: int) -> int:
        return self._reserve(size).ctypes.data

    def pinned(self, size: int) -> tuple[int, np.ndarray]:
        found = self._reserve(size)
        return found.ctypes.data, found

    def release(self, address: int) -> None:
        self._memory = [found for found in self._memory if not 0 <= address - found.ctypes.data < found.nbytes]

    def build(self, modules: Sequence[Module], *, compiling: Callable[[], None]) -> None:
        # Most runs have no prompt that is long enough for the products of wide tiles.
        self._later += [module for module in modules if _OF_WIDE_TILES.search(module.source)]
        self._build([module for module in modules if not _OF_WIDE_TILES.search(module.source)], compiling)

    def _build(self, modules: Sequence[Module], compiling: Callable[[], None]) -> None:
        macros = {module.defines: None for module in modules}
        texts = {defines: _source([one for one in modules if one.defines == defines]) for defines in macros}
        built = {_place(text, defines): (text, defines) for defines, text in texts.items()}
        if not all(library.exists() for library in built):
            compiling()
        for library, (text, defines) in built.items():
            if not library.exists():
                _compile(text, defines, library)
            self._libraries.append(ctypes.CDLL(str(library)))

    def _library_of(self, kernel: str) -> Any:
        if not any(hasattr(library, kernel) for library in self._libraries):
            later, self._later = self._later, []
            self._build(later, lambda: None)
        return next(library for library in reversed(self._libraries) if hasattr(library, kernel))

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *parameters: int, shared: int = 0,
        together: bool = False, behind: bool = False,
    ) -> None:  # fmt: skip
        self.put(partial(self._run, kernel, grid, threads, parameters, shared, together))

    def _run(
        self, kernel: str, grid: tuple[int, int, int], threads: int, parameters: tuple[int, ...], shared: int,
        together: bool,
    ) -> None:  # fmt: skip
        library = self._library_of(kernel)
        values = (ctypes.c_uint64 * len(parameters))(*parameters)
        library.stack_bytes.restype = ctypes.c_size_t
        with self._one_at_a_time:
            stacks = ctypes.c_void_p(_stacks(library.stack_bytes()).ctypes.data)
            library.emulate(stacks, getattr(library, kernel), *grid, threads, values, len(parameters), shared, together)

    def copy(self, source: Lines, target: Lines) -> None:
        assert (source.width, source.height) == (target.width, target.height)
        for index in range(source.height):
            at, to = source.address + index * source.pitch, target.address + index * target.pitch
            ctypes.memmove(to, at, source.width)

    def clear(self, target: Lines) -> None:
        for index in range(target.height):
            ctypes.memset(target.address + index * target.pitch, 0, target.width)

    def record(self) -> Event:
        return _Event()

    def moment(self) -> Moment:
        return _Event()

    def capture(self, work: Callable[[], None]) -> Graph:
        self._recording = []
        try:
            work()
            return _Graph(self._recording)
        finally:
            self._recording = None

    def fault(self) -> str | None:
        return None

    def close(self) -> None:
        self._memory.clear()

    def _reserve(self, size: int) -> np.ndarray:
        whole = np.zeros(size + 256, np.uint8)
        self._memory.append(whole)
        offset = -whole.ctypes.data % 256
        return whole[offset : offset + size]


def emulated(
    folder: Path, *, max_batch: int = 8, capacity: int | None = None, quantize: str | None = None,
    self_check: bool = True, adapters: int = 0, max_lora_rank: int = 16, **_: Any,
) -> Engine:  # fmt: skip
    """Load a checkpoint into the CUDA engine on an emulated device, as `load_engine` does on a real one."""
    model = ModelConfig.from_folder(folder)
    capacity = capacity or model.max_positions
    engine = CudaEngine(
        model, Checkpoint.open(folder, model), rows=max_batch, capacity=capacity, quantize=quantize,
        adapters=adapters, max_lora_rank=max_lora_rank, device=EmulatedDevice(),
    )  # fmt: skip
    if self_check:
        check_engine(engine)
    return engine
