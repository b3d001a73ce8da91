"""Tiny checkpoints, written once for all tests of the engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import Engine, load_engine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[Engine]:
    loaded = load_engine(checkpoint, max_batch=4, capacity=48)
    yield loaded
    loaded.close()
