"""The tests of plans use TensorRT's real parser and builder, which need no GPU; what they compile are tiny models."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint
from full_tensorrt import full_tensorrt
from tensorrt_stand_in import CAPACITY, POSITIONS, ROWS, Ada, StandIn, write_stand_in_plan

from gpu import Checkpoint, ModelConfig
from gpu.tensorrt.available import missing

Exporter = Callable[..., Path]
Load = Callable[..., Any]
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


@pytest.fixture(scope="session")
def plan(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the stand-in."""
    target = tmp_path_factory.mktemp("plan") / "made"
    return write_stand_in_plan(checkpoint, target, rows=ROWS, capacity=CAPACITY, positions=POSITIONS)


@pytest.fixture
def device() -> Ada:
    return Ada()


@pytest.fixture
def world(device: Ada, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A stand-in that looks every call up in both flavours, where the bindings of both are there."""
    made = StandIn(device)
    if not isinstance(full := full_tensorrt(tmp_path_factory.mktemp("tensorrt")), str) and full not in made.modules:
        made.modules.append(full)
    return made


@pytest.fixture
def load(world: StandIn, checkpoint: Path, plan: Path) -> Iterator[Load]:
    """Loads the plan into the engine, with the stand-in, and closes it after the test."""
    from gpu.tensorrt.engine import TensorRTEngine

    model = ModelConfig.from_folder(checkpoint)
    with ExitStack() as stack:

        def make(**changed: Any) -> Any:
            options: dict[str, Any] = {"rows": ROWS, "capacity": CAPACITY, "device": world.device, "plan": plan}
            opened = Checkpoint.open(checkpoint, model)
            engine = TensorRTEngine(model, opened, runtime=world, **options | changed)
            return stack.enter_context(closing(engine))

        yield make
