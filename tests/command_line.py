"""Runs the command line in this process, as `main` would be run by the shell; a fixture for conftest files."""

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from phases.cli import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def phasewalk(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Command:
    """Run the command in this process, in an empty folder, as `main` would be run by the shell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    before = signal.getsignal(signal.SIGINT)

    def command(*arguments: str, stdin: str | None = None) -> Answer:
        monkeypatch.setattr(sys, "argv", ["phasewalk", *arguments])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        signal.signal(signal.SIGINT, before)
        return Answer(int(exited.value.code or 0), captured.out.decode(), captured.err.decode())

    return command
