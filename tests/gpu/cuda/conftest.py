"""The emulated device, and the real one where there is one: bare, or with a CUDA engine on it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
from emulated_device import CAN_EMULATE, EmulatedDevice, emulated

from gpu import Checkpoint, CudaEngine, ModelConfig, unavailable_engines
from gpu.cuda.device import Device

MISSING = unavailable_engines().get("cuda")
Load = Callable[..., CudaEngine]


def on_device(
    folder: Path, *, max_batch: int = 8, capacity: int | None = None, quantize: str | None = None
) -> CudaEngine:
    model = ModelConfig.from_folder(folder)
    capacity = capacity or model.max_positions
    return CudaEngine(model, Checkpoint.open(folder, model), rows=max_batch, capacity=capacity, quantize=quantize)


def real_device() -> Device:
    from gpu.cuda.driver import CudaDevice

    return CudaDevice()


BARE: dict[str, Callable[[], Device]] = {"emulated": EmulatedDevice, "device": real_device}
DEVICES: dict[str, Load] = {"emulated": partial(emulated, self_check=False), "device": on_device}


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")),
        pytest.param("device", marks=[pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Which device it is."""
    return str(request.param)


@pytest.fixture
def bare(device: str) -> Iterator[Device]:
    """The device under test without an engine or kernels, entered."""
    with closing(BARE[device]()) as made:
        made.enter()
        yield made


@pytest.fixture
def load(device: str) -> Iterator[Load]:
    """Loads a checkpoint into the engine on the device under test, and closes it after the test."""
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(closing(DEVICES[device](folder, **options)))
