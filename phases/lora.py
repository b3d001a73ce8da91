"""LoRA adapters by their names: which there are, which row has which, and whether it is the one of a record."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gpu import Adapter, LoadedAdapter, ModelConfig
from gpu.adapter import DEFAULT_RANK
from phases.errors import RequestError
from phases.request import GenerationRequest, RowRequest

Adapters = Mapping[str, str | Path | None]
"""Folders of adapters by the names that requests use; None is the bundled one of that name."""

_BUNDLED = Path(__file__).parent / "demo_adapters"


def bundled_adapters() -> dict[str, Path]:
    """The adapters of the bundled demo model, by name."""
    return {folder.name: folder for folder in sorted(_BUNDLED.iterdir()) if folder.is_dir()}


def read_adapter(name: str, path: str | Path | None, model: ModelConfig, max_rank: int | None = None) -> Adapter:
    """Read an adapter of this model.

    Raises
    ------
    RequestError
        When the name is none, or names no bundled adapter where no folder is given.
    AdapterError
        When it is no LoRA adapter of this model, or is damaged.
    """
    check_name(name)
    return Adapter.read(folder_of(name, path), model, max_rank=max_rank or DEFAULT_RANK)


def folder_of(name: str, path: str | Path | None) -> str | Path:
    """The folder of an adapter; raises RequestError where none is given, and none of that name is bundled."""
    if path is not None:
        return path
    if name not in bundled_adapters():
        raise RequestError(
            f"no adapter {name!r:.80} comes with phasewalk, only {', '.join(bundled_adapters())}: name its folder"
        )
    return bundled_adapters()[name]


def check_name(name: str) -> None:
    """Raise RequestError for what no adapter can be called."""
    if not isinstance(name, str) or not name or len(name) > 200 or not name.isprintable():
        raise RequestError(f"an adapter's name is a printable word, not {name!r:.200}")


def with_adapters(
    request: GenerationRequest, loaded: Mapping[str, LoadedAdapter], default: str | None
) -> GenerationRequest:
    """A request whose rows all say which adapter they have, and which one that is.

    Raises
    ------
    RequestError
        When a row names an adapter that there is not, or another one of that name.
    """
    if (wrong := other_adapter(request, loaded, default)) is not None:
        raise RequestError(wrong)

    def settled(row: RowRequest) -> RowRequest:
        name = _name(row, default)
        return replace(row, lora_weights_name=name, lora_fingerprint=loaded[name].fingerprint if name else None)

    return replace(request, requests=tuple(map(settled, request.requests)))


def other_adapter(
    request: GenerationRequest, loaded: Mapping[str, LoadedAdapter], default: str | None = None
) -> str | None:
    """Say why the rows of a request cannot have the adapters that they name, or give None."""
    for row in request.requests:
        name = _name(row, default)
        if name and name not in loaded:
            there = f"there are {', '.join(map(repr, loaded))}" if loaded else "none is loaded"
            return f"there is no adapter {name!r:.80}; {there}"
        if name and row.lora_fingerprint not in (None, loaded[name].fingerprint):
            return (
                f"the adapter {name!r:.80} is another one than it was: its fingerprint is {loaded[name].fingerprint}, "
                f"expected {row.lora_fingerprint!r:.80}"
            )
    return None


def _name(row: RowRequest, default: str | None) -> str:
    return (default or "") if row.lora_weights_name is None else row.lora_weights_name
