"""Models for all tests of the phases: a tiny random one, and the bundled one with a record of it."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import phasewalk

from phases import Generation, Generator, SamplingParams

__all__ = ["phasewalk"]  # a fixture


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def generator(chat_folder: Path) -> Iterator[Generator]:
    with Generator.from_pretrained(chat_folder, max_batch=4) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def demo() -> Iterator[Generator]:
    with Generator.from_pretrained(max_batch=3, self_check=False) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def batch_journal(demo: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of the demo model with digests; one is edited on the way."""
    path = tmp_path_factory.mktemp("journal") / "run.jsonl"
    params = [SamplingParams(temperature=1.3, seed=3, max_new_tokens=12, stop_token_ids=()),
              SamplingParams(temperature=0, max_new_tokens=5, stop_token_ids=())]  # fmt: skip
    run = demo.start(["Tell me a story about a fox.", "Count from 3 to 9."], params, journal=path, digest_every=1)
    run.until(lambda run: len(run.context.output_ids[0]) == 4)
    run.edit("force", row=0, token=262)
    run.resume()
    return path


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


@pytest.fixture(scope="session")
def journal(batch_journal: Path) -> Path:
    return batch_journal
