"""Exports that the engine made before, in the user's cache folder: one for each checkpoint and kind of weights."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.errors import ExportError
from gpu.memory import size
from gpu.onnx.data import data_size
from gpu.onnx.export import Export, check_export, export
from gpu.onnx.identity import FORMAT, Identity
from gpu.printable import printable
from gpu.user_cache import user_cache
from gpu.whole_folder import remove_folder, sweep_parts

DTYPE = "float32"  # the one that ONNX Runtime computes in on a CPU


def cached_export(checkpoint: Checkpoint, model: ModelConfig, quantize: str | None = None) -> Export:
    """Read the checkpoint's export, which is made first if it is not there, or not whole.

    It fits any capacity and any number of rows. Of processes that want it at once, one makes it, and the others wait.

    Raises
    ------
    ExportError
        If it cannot be made, or not kept.
    CheckpointError
        If the checkpoint cannot be read.
    """
    model_print = model_fingerprint(checkpoint.folder)
    folder, wanted = _place(model_print, quantize), Identity(model_print, DTYPE, quantize=quantize)

    def kept() -> Export | None:
        if folder.is_dir():
            with suppress(ExportError):
                found = check_export(folder, model, model_print)
                return found if found.identity.with_weights("") == wanted else None
        return None

    if (found := kept()) is not None:
        return found
    try:
        with _alone_at(folder, checkpoint):
            if (found := kept()) is not None:
                return found
            if folder.is_dir():
                remove_folder(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            sweep_parts(folder)
            export(checkpoint, model, folder, dtype=DTYPE, quantize=quantize)
            return check_export(folder, model, model_print)
    except OSError as error:
        raise ExportError(
            f"the export of the model cannot be kept in {printable(folder.parent)} "
            f"({printable(error.strerror or error)}): make room there, or set XDG_CACHE_HOME to a folder that can be "
            f"written to"
        ) from None


@contextmanager
def _alone_at(folder: Path, checkpoint: Checkpoint) -> Iterator[None]:
    """Keep all others that would make this export out, once those that are at it have ended, or were killed."""
    locks = user_cache("locks")
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / folder.name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        checkpoint.announce("waiting for another process that exports the model")
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


def cannot_keep(checkpoint: Path, model: ModelConfig) -> str | None:
    """Say why there is no export of a checkpoint's weights as they are, and none can be made, or give None."""
    cache, needed = user_cache("exports"), data_size(model, DTYPE)
    there = next(path for path in (cache, *cache.parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        reason = "it cannot be written to"
    elif needed > (free := shutil.disk_usage(there).free):
        reason = f"{size(free)} are free"
    else:
        return None
    if _place(model_fingerprint(checkpoint), None).is_dir():
        return None
    return f"an export of the model, {size(needed)}, cannot be kept in {printable(cache)}: {reason}"


def _place(model_print: str, quantize: str | None) -> Path:
    """Give the folder in which the export of a checkpoint of this fingerprint lies, or would."""
    return user_cache("exports") / f"{model_print}-{quantize or DTYPE}-{FORMAT}"
