"""A generation to debug, and a record of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from debugger_lines import PARAMS, PROMPT

from phases import Generator
from phases.debugger.generation import GenerationSession


@pytest.fixture
def session(generator: Generator) -> Iterator[GenerationSession]:
    made = GenerationSession.live(generator, generator.start(PROMPT, PARAMS, keep=True))
    yield made
    made.close()


@pytest.fixture
def journal(generator: Generator, tmp_path: Path) -> Path:
    path = tmp_path / "fox.jsonl"
    run = generator.start(PROMPT, PARAMS, journal=path, digest_every=1)
    run.step()
    run.step()
    run.edit("force", token=30)
    run.resume()
    return path
