"""One tiny random chat model for all tests of the phases."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import phasewalk

from phases import Generator

__all__ = ["phasewalk"]  # a fixture


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def generator(chat_folder: Path) -> Iterator[Generator]:
    with Generator.from_pretrained(chat_folder, max_batch=4) as loaded:
        yield loaded
