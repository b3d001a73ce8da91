"""Kernels from their source, by NVRTC, once: what it made lies in the user's cache folder from then on."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from gpu.cuda.device import Module
from gpu.errors import DeviceError
from gpu.user_cache import user_cache

_DIGEST = 32  # bytes of the checksum before the code


def compiler_version() -> str:
    """Give the version of NVRTC."""
    major, minor = _checked(nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def compiled(
    modules: Sequence[Module], architecture: str, *, compiling: Callable[[], None] = lambda: None
) -> list[bytes]:
    """Give the machine code of each module, from the cache if it is there; the others are compiled all at once.

    Parameters
    ----------
    modules : sequence of Module
        In CUDA C++.
    architecture : str
        As NVRTC names it.
    compiling : callable, optional
        Called once before any is compiled, which takes seconds.

    Raises
    ------
    DeviceError
        With the compiler's words.
    """
    paths = {module: _path(module, architecture) for module in modules}
    codes = {module: code for module, path in paths.items() if (code := _cached(path)) is not None}

    def made(module: Module) -> bytes:
        code, _ = compile_module(module, architecture)
        _store(paths[module], code)
        return code

    if lacking := [module for module in paths if module not in codes]:
        compiling()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # NVRTC lets other threads of Python run
            codes |= zip(lacking, pool.map(made, lacking), strict=True)
    return [codes[module] for module in modules]


def compile_module(module: Module, architecture: str, *more: str) -> tuple[bytes, str]:
    """Compile, with more options if given, and give the machine code and what the compiler has to say.

    Raises
    ------
    DeviceError
        With the compiler's words.
    """
    source, options = module.source, [*_options(module, architecture), *more]
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))[0]
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program))[0])
        text = bytes(log)
        _checked(nvrtc.nvrtcGetProgramLog(program, text))
        words = text.rstrip(b"\0").decode(errors="replace")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise DeviceError(f"NVRTC {compiler_version()} could not compile the kernels ({result.name}): {words}")
        code = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program))[0])
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return code, words
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _options(module: Module, architecture: str) -> list[str]:
    return [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{define}" for define in module.defines)]


def _path(module: Module, architecture: str) -> Path:
    key = "\0".join([module.source, *_options(module, architecture), compiler_version()])
    return user_cache("kernels") / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"


def _cached(path: Path) -> bytes | None:
    """Read code back if it is whole."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, code = stored[:_DIGEST], stored[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _store(path: Path, code: bytes) -> None:
    """Put code into the cache; one that cannot be written to only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    except OSError:
        return


def _checked(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    result, *values = answer
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeviceError(f"NVRTC failed: {getattr(result, 'name', result)}")
    return tuple(values)
