"""Reads a checkpoint's small files, which may hold anything at all: what is no JSON object is one clear error."""

import json
import stat
from pathlib import Path
from typing import Any

from gpu.errors import CheckpointError
from gpu.printable import printable

_LARGEST = 64 * 2**20  # bytes; a tokenizer.json of a quarter million tokens has 35 million


def read_text(path: Path, *, largest: int = _LARGEST) -> str:
    """Read a UTF-8 file whole.

    Raises
    ------
    CheckpointError
        If it is missing, no regular file (reading a pipe would wait for ever), larger than `largest` bytes or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{printable(path)} is no regular file: expected text")
        if status.st_size > largest:
            raise CheckpointError(f"{printable(path)} has {status.st_size} bytes: expected at most {largest}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{printable(path)} is not UTF-8: {printable(error)}") from None
    except (OSError, ValueError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{printable(path)} cannot be read: {printable(error)}") from None


def read_object(path: Path, *, largest: int = _LARGEST) -> dict[str, Any]:
    """Read a file that must hold one JSON object; raises CheckpointError as `read_text` does, or if it does not."""
    text = read_text(path, largest=largest)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{printable(path)} is not JSON: {printable(error) or 'too large'}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{printable(path)} holds a {type(value).__name__}, expected a JSON object")
    return value
