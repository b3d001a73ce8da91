"""A device that is none: the engine's kernels, built for the CPU by g++, one thread of a block after the other.

Slow, and its sums round otherwise than tensor cores do, but the engine above it and every index, barrier and exchange
of its kernels are those that run on a GPU.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu import Checkpoint, Engine, ModelConfig
from gpu import self_check as check_engine
from gpu.cuda.device import Event, Graph, Lines
from gpu.cuda.engine import CudaEngine

HEADER = Path(__file__).parent / "gpu" / "cuda" / "emulated_cuda.hpp"
CAN_EMULATE = shutil.which("g++") is not None and platform.machine() == "x86_64" and os.name == "posix"
_FLAGS = ("-std=c++17", "-O2", "-mfma", "-ffp-contract=off", "-shared", "-fPIC", "-w")
_BUILT = Path(tempfile.gettempdir()) / f"phasewalk-emulated-{os.getuid() if hasattr(os, 'getuid') else 0}"


class _Event:
    def sync(self) -> None:
        pass


class _Graph:
    def __init__(self, launches: list[tuple[Any, ...]], run: Callable[..., None]) -> None:
        self._launches, self._run = launches, run

    def launch(self) -> None:
        for launch in self._launches:
            self._run(*launch)


class EmulatedDevice:
    """See `gpu.cuda.device.Device`; everything is done at once."""

    processors = 4
    capability = (9, 0)

    def __init__(self) -> None:
        self._memory: list[np.ndarray] = []
        self._recording: list[tuple[Any, ...]] | None = None
        self._library: Any = None

    def environment(self) -> dict[str, Any]:
        return {"device": "emulated"}

    def enter(self) -> None:
        pass

    def memory_free(self) -> int:
        return 1 << 32

    def allocate(self, size: int) -> int:
        return self._reserve(size).ctypes.data

    def pinned(self, size: int) -> tuple[int, np.ndarray]:
        found = self._reserve(size)
        return found.ctypes.data, found

    def build(self, source: str, defines: Sequence[str]) -> None:
        text = HEADER.read_text() + source
        name = hashlib.sha256("\0".join([text, *defines, *_FLAGS]).encode()).hexdigest()
        built = _BUILT / f"{name}.so"
        if not built.exists():
            _BUILT.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
                code, result = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
                code.write_text(text)
                macros = [f"-D{define}" for define in defines]
                subprocess.run(["g++", *_FLAGS, *macros, "-o", str(result), str(code)], check=True)
                result.replace(built)
        self._library = ctypes.CDLL(str(built))

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        *parameters: int,
        shared: int = 0,
        cluster: int = 1,
    ) -> None:
        if self._recording is not None:
            self._recording.append((kernel, grid, threads, cluster, *parameters))
        else:
            self._run(kernel, grid, threads, cluster, *parameters)

    def _run(self, kernel: str, grid: tuple[int, int, int], threads: int, cluster: int, *parameters: int) -> None:
        values = (ctypes.c_uint64 * len(parameters))(*parameters)
        self._library.emulate(getattr(self._library, kernel), *grid, threads, cluster, values, len(parameters))

    def copy(self, source: Lines, target: Lines) -> None:
        assert (source.width, source.height) == (target.width, target.height)
        for index in range(source.height):
            at, to = source.address + index * source.pitch, target.address + index * target.pitch
            ctypes.memmove(to, at, source.width)

    def read(self, source: Lines, target: np.ndarray) -> None:
        assert target.nbytes == source.width * source.height
        for index in range(source.height):
            to, at = target.ctypes.data + index * source.width, source.address + index * source.pitch
            ctypes.memmove(to, at, source.width)

    def record(self) -> Event:
        return _Event()

    def capture(self, work: Callable[[], None]) -> Graph:
        self._recording = []
        try:
            work()
            return _Graph(self._recording, self._run)
        finally:
            self._recording = None

    def close(self) -> None:
        self._memory.clear()

    def _reserve(self, size: int) -> np.ndarray:
        whole = np.zeros(size + 256, np.uint8)
        self._memory.append(whole)
        offset = -whole.ctypes.data % 256
        return whole[offset : offset + size]


def emulated(
    folder: Path, *, max_batch: int = 8, capacity: int | None = None, self_check: bool = True, **_: Any
) -> Engine:
    """Load a checkpoint into the CUDA engine on an emulated device, as `load_engine` does on a real one."""
    model = ModelConfig.from_folder(folder)
    capacity = capacity or model.max_positions
    engine = CudaEngine(
        model, Checkpoint.open(folder, model), rows=max_batch, capacity=capacity, device=EmulatedDevice()
    )
    if self_check:
        check_engine(engine)
    return engine
