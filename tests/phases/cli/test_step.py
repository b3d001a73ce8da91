"""phasewalk step: its exit status without a terminal, and its pictures."""

from pathlib import Path

import pytest
from command_line import Command


@pytest.mark.parametrize(
    ("lines", "code"),
    [("run\ntext\n", 0), ("", 0), ("run\nnonsense\n", 1), ("goto 999\nrun\n", 1), ("quit\nwhat\n", 0)],
)
def test_a_command_that_failed_is_told_by_the_exit_status(
    phasewalk: Command, journal: Path, lines: str, code: int
) -> None:
    answer = phasewalk("step", "--journal", str(journal), "--plain", stdin=lines)
    assert answer.code == code
    assert ("error: " in answer.out) == bool(code)


def test_a_run_that_fails_is_a_command_that_failed(phasewalk: Command, chat_folder: Path) -> None:
    answer = phasewalk("step", "word " * 400, "--model", str(chat_folder), "--plain", stdin="run\n")
    assert answer.code == 1


@pytest.mark.parametrize("name", ["zz.png", "zz", "zz.svg.gz"])
def test_a_picture_is_svg(phasewalk: Command, journal: Path, name: str) -> None:
    answer = phasewalk("step", "--journal", str(journal), "--screenshot", name)
    assert answer.code == 2
    assert "endings: .svg" in answer.err
    assert not Path(name).exists()


def test_only_keys_that_there_are_can_be_pressed(phasewalk: Command, journal: Path) -> None:
    arguments = ("step", "--journal", str(journal), "--screenshot", "a.svg", "--keys")
    for keys in ("n nonsense", "wait:99999", "<any>", "lefft", "\x1b"):
        answer = phasewalk(*arguments, keys)
        assert answer.code == 2
        assert "left, right, pageup, pagedown" in answer.err
        assert not Path("a.svg").exists()
    assert phasewalk(*arguments, "n K escape colon h e l p enter").code == 0
    assert Path("a.svg").read_text().startswith("<svg")
    without = phasewalk("step", "--journal", str(journal), "--keys", "n")
    assert (without.code, "--screenshot" in without.err) == (2, True)
