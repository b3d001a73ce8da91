"""What a command line can be given by mistake or malice: one line of error and an exit status, never a traceback."""

import sys
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import Command

from phases import template_limits


def one_line(error: str) -> str:
    assert "Traceback" not in error
    line = error.rstrip("\n")
    assert line.isprintable()
    assert len(line) < 1500
    return line


@pytest.mark.parametrize("command", ["run", "profile"])
def test_a_prompt_of_bytes_that_are_no_text(phasewalk: Command, command: str) -> None:
    answer = phasewalk(
        command, "caf\udce9 au lait", "--engine", "numpy"
    )  # as Python reads the bytes caf\xe9 of a command line
    assert answer.code == 1
    assert "bytes that are not UTF-8" in one_line(answer.err)


def test_a_home_of_nobody(phasewalk: Command) -> None:
    answer = phasewalk("run", "hi", "--model", "~nosuchuser")
    assert answer.code == 1
    assert "'~nosuchuser' cannot be looked up" in one_line(answer.err)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "[]", "\xff", '[{"role": "user", "content": "\\ud800"}]', "[3]"]
)
def test_messages_that_are_none(phasewalk: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "chat.json").write_bytes(text.encode("latin-1"))
    answer = phasewalk("run", "--messages", "chat.json")
    assert answer.code in (1, 2)
    assert "Traceback" not in answer.err


def test_a_template_that_loops(phasewalk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    folder = write_chat_checkpoint(tmp_path / "model", template=loop)
    answer = phasewalk("run", "hi", "--model", str(folder), "--engine", "numpy")
    assert answer.code == 1
    assert "the checkpoint's chat template refuses these messages" in one_line(answer.err)


def test_a_model_that_needs_transformers_says_how_to_get_it(
    phasewalk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_chat_checkpoint(tmp_path / "model")
    (folder / "tekken.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    answer = phasewalk("run", "hi", "--model", str(folder), "--engine", "numpy")
    assert answer.code == 1
    assert "pip install 'phasewalk[transformers]'" in one_line(answer.err)
