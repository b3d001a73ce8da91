"""phasewalk step: its exit status without a terminal, and its pictures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command
from debugger_lines import PROMPT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("lines", "code"),
    [("run\ntext\n", 0), ("", 0), ("run\nnonsense\n", 1), ("goto 999\nrun\n", 1), ("quit\nwhat\n", 0)],
)
def test_a_command_that_failed_is_told_by_the_exit_status(
    phasewalk: Command, journal: Path, lines: str, code: int
) -> None:
    answer = phasewalk("step", "--open", str(journal), "--plain", stdin=lines)
    assert answer.code == code
    assert ("error: " in answer.out) == bool(code)


def test_a_run_that_fails_is_a_command_that_failed(phasewalk: Command, chat_folder: Path) -> None:
    answer = phasewalk("step", "word " * 400, "--model", str(chat_folder), "--plain", stdin="run\n")
    assert answer.code == 1


@pytest.mark.parametrize("name", ["zz.png", "zz", "zz.svg.gz"])
def test_a_picture_is_svg(phasewalk: Command, journal: Path, name: str) -> None:
    answer = phasewalk("step", "--open", str(journal), "--screenshot", name)
    assert answer.code == 2
    assert "endings: .svg" in answer.err
    assert not Path(name).exists()


def test_only_keys_that_there_are_can_be_pressed(phasewalk: Command, journal: Path) -> None:
    arguments = ("step", "--open", str(journal), "--screenshot", "a.svg", "--keys")
    for keys in ("n nonsense", "wait:99999", "<any>", "lefft", "\x1b"):
        answer = phasewalk(*arguments, keys)
        assert answer.code == 2
        assert "left, right, pageup, pagedown" in answer.err
        assert not Path("a.svg").exists()
    assert phasewalk(*arguments, "n K escape colon h e l p enter").code == 0
    assert Path("a.svg").read_text().startswith("<svg")
    without = phasewalk("step", "--open", str(journal), "--keys", "n")
    assert (without.code, "--screenshot" in without.err) == (2, True)


def phasewalk(*arguments: str, stdin: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from phases.cli import main; main()", *arguments],
        input=stdin, capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "200"}, check=False,
    )  # fmt: skip


def test_without_a_terminal_lines_are_read(chat_folder: Path, tmp_path: Path) -> None:
    options = ("--model", str(chat_folder), "--engine", "numpy", "--seed", "5", "--max-new-tokens", "4")
    done = phasewalk("step", PROMPT, *options, stdin="next\n\n# a remark\nnonsense\nquit\nrun\n", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")  # as one of them failed
    lines = done.stdout.splitlines()
    assert lines[0] == "run 1  ready  at tokenize  step 0 of 0  tokens 0"
    assert lines[1].startswith("token 1: ")
    assert lines[3].startswith("error: expected a command, not 'nonsense'")
    assert len(lines) == 4
    assert phasewalk("step", PROMPT, *options, "--plain", cwd=tmp_path).returncode == 0


def test_a_journal_needs_no_model(tmp_path: Path, journal: Path) -> None:
    code = (
        "import sys; from phases.cli import main; sys.argv = ['phasewalk', 'step', '--open', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('transformers', 'textual', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(journal)], input="run\ntext\n", capture_output=True, text=True, check=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert "stopped: the end of the record (done)" in done.stdout
    assert done.stdout.endswith("[]\n")


USAGE = [
    (("step",), 2, "give a prompt"), (("step", "x", "--open", "{journal}"), 2, "a prompt makes no sense beside --open"),
    (("step", "x", "--engine", "abacus"), 2, "there is no engine"), (("step", "x", "--size", "3x4"), 2, "20x10"),
    (("step", "x", "--screenshot", "{journal}"), 2, "exists already"), (("step", "x", "--top-p", "0"), 2, "top_p"),
    (("step", "--open", "{damaged}"), 1, "phasewalk: "),
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
