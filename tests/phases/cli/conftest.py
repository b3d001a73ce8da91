"""Records for the command line to read, among them one whose text would steer a terminal."""

from pathlib import Path

import pytest
from cli_records import STEERING, record


@pytest.fixture(scope="session")
def journal(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole record: 8 greedy tokens, 24 steps and more."""
    return record(chat_folder, tmp_path_factory.mktemp("plain") / "fox.jsonl")


@pytest.fixture(scope="session")
def steering(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record whose output is STEERING."""
    return record(chat_folder, tmp_path_factory.mktemp("steering") / "steering.jsonl", text=STEERING)
