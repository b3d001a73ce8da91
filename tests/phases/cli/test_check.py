"""phasewalk check: proofs and findings."""

from pathlib import Path

import pytest
from command_line import Command


def test_check_proves_the_built_in_machine(phasewalk: Command) -> None:
    answer = phasewalk("check")
    assert answer.code == 0
    assert "generation is sound" in answer.out
    assert "~nothing_left" in answer.out
    assert "signal cancel: any phase -> cancelled" in answer.out


def test_check_lists_the_findings_of_a_users_machine(phasewalk: Command) -> None:
    Path("lights_of_mine.py").write_text(
        "from statemachine import *\n"
        "red, green, off = Phase('red'), Phase('green'), End('off')\n"
        "dark = Guard('dark', lambda context: context.dark)\n"
        "machine = Machine('lights', start=red, transitions=[Transition(red, green, dark), Transition(green, red)])\n"
    )
    answer = phasewalk("check", "lights_of_mine:machine")
    assert answer.code == 1
    assert "stuck 'red': no transition is enabled when ~dark" in answer.out
    assert "no end 'green'" in answer.out


LIGHTS = (
    "from dataclasses import dataclass\n"
    "from colours import RED\n"
    "from statemachine import *\n"
    "@dataclass\n"
    "class Context: pass\n"
    "machine = lights = Machine('[lights]', start=Phase(RED), transitions=[Transition(RED, End('off'))])\n"
)


def test_a_machine_is_named_by_its_file(phasewalk: Command) -> None:
    Path("mine").mkdir()
    Path("mine/lights.py").write_text(LIGHTS)
    Path("mine/colours.py").write_text("RED = 'red'\n")  # beside it, as `python mine/lights.py` would find it
    for target in ("./mine/lights.py:lights", "mine/lights.py", f"{Path.cwd()}/mine/lights.py:machine"):
        answer = phasewalk("check", target)
        assert answer.code == 0
        assert "[lights] is sound" in answer.out
        assert phasewalk("diagram", target).out.startswith('---\ntitle: "[lights]"')


BROKEN = [
    ("lights.py", "x = 1\nprint(undefined)\n", "lights.py, line 2: NameError: name 'undefined' is not defined"),
    (
        "lights.py",
        "import no_such_module\n",
        "lights.py, line 1: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    ("lights.py", "x = (\n", "lights.py, line 1: SyntaxError: '(' was never closed"),
    ("lights.py", "raise SystemExit(0)\n", "lights.py, line 1: SystemExit: 0"),
    ("lights_module", "import no_such_module\n", "lights_module.py, line 1: ModuleNotFoundError"),
    ("lights_module", "def f():\n    1 / 0\nf()\n", "lights_module.py, line 2: ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize("command", ["check", "diagram"])
@pytest.mark.parametrize(("target", "source", "message"), BROKEN)
def test_a_module_that_fails_is_told_in_one_line(
    phasewalk: Command, command: str, target: str, source: str, message: str
) -> None:
    Path(f"{target.removesuffix('.py')}.py").write_text(source)
    answer = phasewalk(command, f"{target}:machine")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("phasewalk: ")
    assert message in answer.err


@pytest.mark.parametrize("target", ["", ":", ":machine", "..:machine", ".x:machine", "nowhere.py:machine", "a b:c",
                                    "/:x", "phases:nothing", "x.py", "\x1b[2J"])  # fmt: skip
def test_what_names_no_machine_is_a_wrong_command_line(phasewalk: Command, target: str) -> None:
    answer = phasewalk("check", target)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert "\x1b" not in answer.err
    assert "FILE.py:NAME" in answer.err


def test_check_counts_the_cases_of_a_choice(phasewalk: Command) -> None:
    answer = phasewalk("check", "dispatch:machine")
    assert answer.code == 0
    [row] = [line for line in answer.out.splitlines() if "tools & paid" in line]
    assert row.split()[-4:] == ["2", "│", "8", "│"]
