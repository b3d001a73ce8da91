"""Where what can be made again lies, so that it need not be: the user's cache folder."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpu.whole_folder import PARTS, remove_folder, sweep

KINDS = {
    "exports": "checkpoints as ONNX graphs, for the engine onnx",
    "kernels": "compiled kernels of models, for the engine cuda",
    "plans": "checkpoints compiled by TensorRT, for the engine tensorrt",
    "timings": "what TensorRT has timed when it built plans",
}


def user_cache(name: str) -> Path:
    """Give our folder of this name; it may not exist yet. `XDG_CACHE_HOME` (Windows: `LOCALAPPDATA`) moves it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "phasewalk" / name


class Kept(NamedTuple):
    """What lies in one of the folders."""

    entries: int
    size: int  # bytes


def kept(name: str) -> Kept:
    """Count what lies in the folder of this name, but for what is being made there right now."""
    sizes = [sum(file.lstat().st_size for file in _files(entry)) for entry in _entries(user_cache(name))]
    return Kept(len(sizes), sum(sizes))


def clear(name: str) -> Kept:
    """Take away what lies in the folder of this name, and say what that was; whoever has opened it can read on.

    Raises
    ------
    OSError
        If something cannot be taken away.
    """
    before, folder = kept(name), user_cache(name)
    with suppress(FileNotFoundError):
        sweep(folder)
    for entry in _entries(folder):
        with suppress(FileNotFoundError):  # another process was faster
            if entry.is_dir() and not entry.is_symlink():
                remove_folder(entry)
            else:
                entry.unlink()
    after = kept(name)
    return Kept(before.entries - after.entries, before.size - after.size)


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in sorted(folder.iterdir()) if not PARTS.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(entry: Path) -> list[Path]:
    if entry.is_symlink() or not entry.is_dir():
        return [entry]
    return [file for file in entry.rglob("*") if not file.is_dir()]
