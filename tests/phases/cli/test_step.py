"""phasewalk step: the debugger from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from debugger_lines import PROMPT


def phasewalk(*arguments: str, stdin: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from phases.cli import main; main()", *arguments],
        input=stdin, capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "200"}, check=False,
    )  # fmt: skip


def test_without_a_terminal_lines_are_read(chat_folder: Path, tmp_path: Path) -> None:
    options = ("--model", str(chat_folder), "--seed", "5", "--max-new-tokens", "4")
    done = phasewalk("step", PROMPT, *options, stdin="next\n\n# a remark\nnonsense\nquit\nrun\n", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "run 1  ready  at tokenize  step 0 of 0  tokens 0"
    assert lines[1].startswith("token 1: ")
    assert lines[3].startswith("error: expected a command, not 'nonsense'")
    assert len(lines) == 4
    assert phasewalk("step", PROMPT, *options, "--plain", cwd=tmp_path).returncode == 0


def test_a_journal_needs_no_model(tmp_path: Path, journal: Path) -> None:
    code = (
        "import sys; from phases.cli import main; sys.argv = ['phasewalk', 'step', '--journal', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('transformers', 'tokenizers', 'textual', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(journal)], input="run\ntext\n", capture_output=True, text=True, check=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert "stopped: the end of the record (done)" in done.stdout
    assert done.stdout.endswith("[]\n")


USAGE = [
    (("step",), 2, "give a prompt"), (("step", "x", "--journal", "{journal}"), 2, "holds its own prompt"),
    (("step", "x", "--engine", "abacus"), 2, "there is no engine"), (("step", "x", "--size", "3x4"), 2, "20x10"),
    (("step", "x", "--screenshot", "{journal}"), 2, "exists already"), (("step", "x", "--top-p", "0"), 2, "top_p"),
    (("step", "--journal", "{damaged}"), 1, "phasewalk: "),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), USAGE)
def test_a_wrong_command_line(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, journal: Path
) -> None:
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("{}\n")
    done = phasewalk(*(part.format(journal=journal, damaged=damaged) for part in arguments), cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
