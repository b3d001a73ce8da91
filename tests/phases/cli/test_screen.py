"""What a terminal shows while something takes long."""

import io
import sys

import pytest

from phases.cli.screen import LARGE_CHECKPOINT, loading_bar, token_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "150")):
        monkeypatch.setenv(name, value)
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_a_bar_tells_what_loading_does(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    large = 2 * LARGE_CHECKPOINT
    with loading_bar("a model") as progress:
        assert progress is not None
        progress("compiling kernels (once for this model)", 0, 0)
        assert "loading a model: compiling kernels (once for this model)" in terminal.getvalue()
        progress("reading weights", large // 4, large)
        terminal.truncate(0)
        progress("reading weights", large // 2, large)
    last = terminal.getvalue()
    assert "loading a model: reading weights" in last
    assert "67.1/134.2 MB" in last
    assert "compiling" not in last


def test_what_is_there_at_once_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with loading_bar("a model") as progress:
        assert progress is not None
        progress("reading weights", LARGE_CHECKPOINT - 1, LARGE_CHECKPOINT - 1)
    assert "loading" not in terminal.getvalue()


def test_a_bar_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with token_bar("int8 weights") as watch:
        assert watch is not None
        watch(250, 1000)
    assert "int8 weights" in terminal.getvalue()
    assert " 250/1000" in terminal.getvalue()


def test_who_is_no_terminal_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with loading_bar("a model") as progress, token_bar("int8 weights") as watch:
        assert progress is None
        assert watch is None
