"""Kernels from their source, by NVRTC, once: what it made lies in the user's cache folder from then on."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from gpu.errors import DeviceError

_DIGEST = 32  # bytes of the checksum before the code


def compiler_version() -> str:
    """Give the version of NVRTC."""
    major, minor = _checked(nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def compiled(source: str, options: Sequence[str], *, compiling: Callable[[], None] = lambda: None) -> bytes:
    """Give the machine code of kernels, from the cache if it is there.

    Parameters
    ----------
    source : str
        CUDA C++.
    options : sequence of str
        Of NVRTC; they name the architecture.
    compiling : callable, optional
        Called before they are compiled, which takes seconds.
    """
    key = "\0".join([source, *options, compiler_version()])
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    code = _cached(path)
    if code is None:
        compiling()
        code, _ = compile_source(source, options)
        _store(path, code)
    return code


def compile_source(source: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Compile, and give the machine code and what the compiler has to say.

    Raises
    ------
    DeviceError
        With the compiler's words.
    """
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


def cache_folder() -> Path:
    """Give the folder of compiled kernels."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "phasewalk" / "kernels"


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
