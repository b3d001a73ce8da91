"""The command line as a whole: its help, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command, spawn

USAGE = [
    (("run", "x", "--temperature", "-1"), "temperature"),
    (("run", "x", "--temperature", "nan"), "temperature"),
    (("run", "x", "--top-p", "0"), "top_p is a number above 0"),
    (("run", "x", "--top-k", "few"), "top-k"),
    (("run", "x", "--engine", "abacus"), "there is no engine 'abacus': expected auto or one of"),
    (("run", "--messages", "nowhere.json"), "nowhere.json"),
    (("run", "x", "--messages", "chat.json"), "stands for the prompt"),
    (("run", "--messages", "broken.json"), "is not JSON"),
    (("run", "--messages", "empty.json"), "holds no chat"),
    (("run", "x", "--no-such-option"), "no-such-option"),
    (("walk",), "walk"),
    (("check", "no_such_module:machine"), "cannot import 'no_such_module'"),
    (("check", "json:dumps"), "is a function, not a Machine"),
    (("check", "json:nothing"), "expected MODULE:NAME"),
    (("diagram", "--highlight", "nowhere"), "no phase 'nowhere'; phases: tokenize"),
    (("diagram", "--format", "bmp"), "bmp"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_a_wrong_command_line_exits_with_2(phasewalk: Command, arguments: tuple[str, ...], message: str) -> None:
    Path("chat.json").write_text("[]")
    Path("empty.json").write_text("[]")
    Path("broken.json").write_text("[{")
    answer = phasewalk(*arguments)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from phases.cli import main; sys.argv = ['phasewalk', '--help']\n"
        "try: main()\n"
        "except SystemExit as exited: code = exited.code\n"
        "heavy = [m for m in ('numpy', 'transformers', 'torch', 'cuda', 'tokenizers') if m in sys.modules]\n"
        "print(code, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"
    assert 'phasewalk run "What does Prefill do?"' in done.stdout
    help_of_run = spawn("run", "--help").communicate(timeout=60)[0]
    assert "--temperature" in help_of_run
