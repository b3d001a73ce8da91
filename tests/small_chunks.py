"""NumPy engines that cut prompts into chunks so small that short ones have several."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import gpu.numpy.engine


@contextmanager
def chunks_of(tokens: int) -> Iterator[None]:
    """While it lasts, engines are loaded that take so many tokens of a prompt through the layers together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu.numpy.engine, "_CHUNK", tokens)
        yield
