"""Fingerprints of checkpoints: equal for equal files, and cheap however large these are."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_SAMPLES = 256  # places in a large file that are looked at
_PIECE = 4096  # bytes at each


def fingerprint(paths: Iterable[Path]) -> str:
    """Digest the names, sizes and contents of files; of a large file, its first megabyte and 256 places evenly spread.

    Parameters
    ----------
    paths : iterable of Path
        Files, in any order.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            head = 1 << 20
            digest.update(file.read(head))
            if size <= 2 * head:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek(head + (size - head - _PIECE) * sample // (_SAMPLES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:32]


def model_fingerprint(folder: Path) -> str:
    """Digest a checkpoint's config.json and weights."""
    return fingerprint([folder / "config.json", *folder.glob("*.safetensors")])


def tokenizer_fingerprint(folder: Path) -> str:
    """Digest what turns text into ids: the tokenizer's files and the chat template."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "chat_template.json")
    return fingerprint(folder / name for name in names if (folder / name).is_file())
