"""One tiny random chat model for all tests of the phases."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import phasewalk

from phases import Generation, Generator

__all__ = ["phasewalk"]  # a fixture


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def generator(chat_folder: Path) -> Iterator[Generator]:
    with Generator.from_pretrained(chat_folder, max_batch=4) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def rows_come_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails may leave runs behind, which its traceback keeps alive: their rows are freed for the next."""
    yield
    if "generator" not in request.fixturenames:
        return
    engine = request.getfixturevalue("generator").engine
    if engine.kv_cache.free < engine.kv_cache.rows:
        gc.collect()
        for context in gc.get_objects():
            if isinstance(context, Generation) and context.engine is engine and context.lease:
                context.lease()
