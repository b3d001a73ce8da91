"""Holds an engine at its decode steps, so that a test knows where a run in another thread is."""

import threading
from collections.abc import Sequence

import pytest

from phases import Generator

PATIENCE = 60  # seconds after which a test that hangs fails


class Gate:
    """In front of an engine's decode as long as the test lasts: each one waits until it may go on."""

    def __init__(self, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._reached, self._open = threading.Semaphore(0), threading.Semaphore(0)
        decode = generator.engine.decode

        def held(rows: Sequence[int]) -> None:
            self._reached.release()
            assert self._open.acquire(timeout=PATIENCE)
            decode(rows)

        monkeypatch.setattr(generator.engine, "decode", held)

    def wait(self) -> None:
        """Until a decode has begun that was not waited for yet."""
        assert self._reached.acquire(timeout=PATIENCE)

    def open(self, decodes: int = 1) -> None:
        """Let so many of them go on."""
        self._open.release(decodes)
