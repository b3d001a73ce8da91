"""An engine that rounds weights as it loads them: who chooses, records or compares quantised ones needs no GPU here."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gpu.load
from gpu import Checkpoint, ModelConfig, NumpyEngine, OptionError

STEPS = {"int8": 127, "fp8": 3}  # from zero to a row's largest number


class Rounded(Checkpoint):
    """Gives matrices of few different numbers a row."""

    steps = 0

    def read(self, *names: str) -> npt.NDArray[np.float32]:
        array = super().read(*names)
        if array.ndim == 2:
            scale = np.abs(array).max(axis=1, keepdims=True) / np.float32(self.steps)
            array[:] = np.rint(array / scale) * scale
        return array


class CoarseEngine(NumpyEngine):
    name = "coarse"

    def __init__(self, model: ModelConfig, checkpoint: Checkpoint, *, quantize: str | None = None, **options: Any):
        if quantize not in (None, *STEPS):
            raise OptionError(f"weights are not quantised as {quantize!r}: expected {' or '.join(STEPS)}")
        if quantize is not None:
            checkpoint = Rounded(checkpoint.entries, checkpoint.progress)
            checkpoint.steps = STEPS[quantize]
        self._quantize = quantize
        super().__init__(model, checkpoint, **options)

    def environment(self) -> dict[str, Any]:
        return super().environment() | ({"quantize": self._quantize} if self._quantize else {})


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `load_engine` know it, as the last of all."""
    monkeypatch.setitem(gpu.load._ENGINES, "coarse", CoarseEngine)
    monkeypatch.setitem(gpu.load._OPTIONS, "coarse", ("quantize", "decode"))
