"""The tests of plans use TensorRT's real parser and builder, which need no GPU; what they compile are tiny models."""

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import Checkpoint, ModelConfig
from gpu.tensorrt.available import missing

Exporter = Callable[..., Path]
OPTIONS = {"dtype": "bfloat16", "capacity": 64, "max_batch": 2}


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def builds_anywhere(library: None) -> None:
    """The flavour that is installed needs no GPU to build."""
    from gpu.tensorrt.library import device_classes, device_here

    if not device_classes() and device_here() is None:
        pytest.skip("the full TensorRT builds only where there is a GPU")


@pytest.fixture
def exported(tmp_path: Path) -> Exporter:
    """Export a tiny random checkpoint of a family."""

    def make(family: str = "llama", *, config: dict[str, object] | None = None, **options: object) -> Path:
        from gpu.onnx.export import export

        folder = write_checkpoint(tmp_path / "checkpoint", family, **(config or {}))
        model = ModelConfig.from_folder(folder)
        export(Checkpoint.open(folder, model), model, tmp_path / "export", **(OPTIONS | options))  # type: ignore[arg-type]
        return tmp_path / "export"

    return make
