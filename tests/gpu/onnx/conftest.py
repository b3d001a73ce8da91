"""The tests of exports and of the engine that runs them need both libraries."""

import pytest

from gpu import unavailable_engines


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    if (reason := unavailable_engines().get("onnx")) is not None:
        pytest.skip(reason)
