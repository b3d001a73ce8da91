"""Two runs side by side, with their first difference."""

from typing import Any

import crossroads
import odd_context
import pytest
from debugger_lines import said

from phases.debugger.compare import first_difference
from phases.debugger.generation import GenerationSession
from phases.debugger.machine_session import live
from phases.debugger.session import Session


@pytest.fixture
def lights() -> Session[Any]:
    return live(crossroads.machine, crossroads.new_context)


def test_the_first_difference_of_two_runs(lights: Session[Any]) -> None:
    said(lights, "step 3", "fork", 'edit arrive {"cars": 4}', "run")
    assert said(lights, "switch 1", "run", "compare 2")[-14:] == [
        "run 1 and run 2 differ first at step 3",
        "  run 1                   run 2, fork of 1 at step 3",
        "      0 red -> green  3       0 red -> green  3",
        "      1 green -> red  3       1 green -> red  3",
        "      2 red -> green  0       2 red -> green  0",
        "*     3 green -> red  0         edit arrive: 4",
        "                              3 green -> green  3",
        "      4 red -> green  2       4 green -> red  1",
        "      5 green -> red  2       5 red -> green  2",
        "      6 red -> green  2       6 green -> red  2",
        "      7 green -> red  2       7 red -> green  3",
        "      8 red -> green  3       8 green -> done  3",
        "      9 green -> done  3      9 done  done",
        "     10 done  done",
    ]


def test_runs_that_are_the_same_and_runs_that_are_not_as_long(lights: Session[Any]) -> None:
    said(lights, "step 3", "fork")
    assert said(lights, "compare") == ["run 2 and run 1 are the same for all 3 steps"]
    said(lights, "step")
    assert said(lights, "compare")[0] == "run 2 and run 1 differ first at step 3"
    said(lights, "back 2")
    assert said(lights, "compare")[0] == "run 2 and run 1 differ first at step 2"
    assert said(lights, "compare 2")[0] == "error: expected the number of another run, compare N; others: 1"


def test_odd_outcomes_are_compared() -> None:
    session = live(odd_context.machine, odd_context.Odd)
    said(session, "step 2", "fork", "step 2", "switch 1", "step 2")
    one, other = (branch.run for branch in session.branches)
    assert first_difference(one, other) is None


def test_tokens_of_two_generations(session: GenerationSession) -> None:
    said(session, "next 3", "fork 5", "force 30", "next 2", "switch 1")
    answer = said(session, "compare")
    assert answer[0] == "run 1 and run 2 differ first at step 5"
    at = next(number for number, line in enumerate(answer) if line.startswith("*"))
    assert f"edit force: 30 {session.label(30)}" in answer[at]
    own = session.run.context.output_ids[0][1]
    assert f"token {own} " in answer[at + 1] + " " or f"token {own} " in answer[at] + " "
    assert "token 30" in "".join(answer[at:])
