"""phasewalk check: proofs and findings."""

from pathlib import Path

from command_line import Command


def test_check_proves_the_built_in_machine(phasewalk: Command) -> None:
    answer = phasewalk("check")
    assert answer.code == 0
    assert "generation is sound" in answer.out
    assert "~nothing_left" in answer.out
    assert "signal cancel: to cancelled from any phase" in answer.out


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
