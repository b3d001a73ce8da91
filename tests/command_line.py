"""Runs the command line in this process (a fixture for conftest files), or in one of its own."""

import io
import signal
import subprocess
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


MAIN = "from phases.cli import main; main()"


def spawn(*arguments: str, **options: object) -> subprocess.Popen:
    """Start the command in a process of its own, its streams piped unless told otherwise."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", MAIN, *arguments], text=True, **(streams | options))


def finish(*arguments: str, timeout: float = 60, **options: object) -> Answer:
    """Run the command in a process of its own to its end."""
    with spawn(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Answer(process.returncode, out or "", err or "")
