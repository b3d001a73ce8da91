"""Signals that are sent to a resting run: what they carry, where they lead, what refuses them."""

import json
from typing import Any

import pytest
from desk import Approval, Text, desk, machine, reviewed

from statemachine import (
    GuardError,
    IllegalMove,
    OutcomeError,
    Resources,
    Run,
    Signal,
    Status,
)
from statemachine.execution.timeline import Event

INTERPRETERS = pytest.mark.parametrize("interpreter", ["compiled", "transitions"])


@INTERPRETERS
def test_a_name_leads_where_the_phase_says(interpreter: Any) -> None:
    run = Run(machine, Text(), interpreter=interpreter)
    run.step()
    run.signal("hurry")
    assert run.phase_name == "review"
    run.signal("hurry")
    assert run.phase_name == "publish"
    with pytest.raises(IllegalMove, match="rests at 'publish', but 'hurry' is taken only at 'draft', 'review'"):
        run.signal("hurry")
    assert run.resume() is Status.DONE
    assert run.events == [Event(1, "signal", "hurry"), Event(1, "signal", "hurry")]


@INTERPRETERS
def test_a_payload_is_entered_and_recorded_in_its_type(interpreter: Any) -> None:
    run = reviewed(interpreter=interpreter)
    run.signal("approve", Approval("Ada"))
    assert (run.phase_name, run.context.approvals) == ("publish", [Approval("Ada")])
    assert run.events == [Event(4, "signal", "approve", Approval("Ada"))]


def test_a_payload_may_come_as_the_plain_values_that_a_record_would_hold() -> None:
    run = reviewed()
    run.signal("approve", json.loads('{"by": "Ada", "stars": 5}'))
    assert run.context.approvals == [Approval("Ada", 5)]


@pytest.mark.parametrize(
    ("name", "payload", "complaint"),
    [
        ("approve", 3, "3 is no payload of signal 'approve', which takes Approval: Expected `object`, got `int`"),
        ("approve", None, "None is no payload of signal 'approve', which takes Approval"),
        ("approve", {"by": 3}, "Expected `str`, got `int` - at `\\$.by`"),
        ("approve", {"by": float("nan")}, "JSON cannot hold"),
        ("approve", {1, 2}, "a set has no order"),
        ("drop", 3, "signal 'drop' carries no payload, but 3 came: send it without"),
    ],
)
def test_a_payload_of_another_type_is_refused_before_anything_changes(name: str, payload: Any, complaint: str) -> None:
    for run in (reviewed(), Run(machine, Text())):
        before = (run.status, run.phase_name, run.context.approvals.copy())
        with pytest.raises(OutcomeError, match=complaint):
            run.signal(name, payload)
        assert (run.status, run.phase_name, run.context.approvals, run.events, run.pending) == (*before, [], ())


def test_none_is_a_payload_where_the_type_says_so() -> None:
    class Rate(Signal[Text, int | None]):
        def apply(self, context: Text, payload: int | None) -> None:
            context.notes.append(str(payload))

    run = Run(desk(signals=[Rate("rate", to="draft")]), Text())
    run.signal("rate")
    run.signal("rate", None)
    run.signal("rate", 3)
    with pytest.raises(OutcomeError, match=r"which takes int \| None"):
        run.signal("rate", "three")
    assert run.context.notes == ["None", "None", "3"]


def test_what_cannot_be_entered_is_told_to_the_sender_and_leaves_the_run_as_it_was() -> None:
    run = reviewed()
    with pytest.raises(PermissionError, match="the thief approves nothing") as told:
        run.signal("approve", Approval("the thief"))
    assert told.value.__notes__ == [f"signal 'approve' could not enter its payload, and run {run.id} is as it was"]
    assert (run.status, run.events, run.pending) == (Status.WAITING, [], ())
    assert run.context == Text(drafts=4)
    run.signal("approve", Approval("Ada"))
    assert run.context.approvals == [Approval("Ada")]


def test_in_its_past_a_run_forgets_what_lay_ahead_only_for_what_can_be_entered() -> None:
    run = reviewed(keep=True)
    run.answer("good")
    run.resume()
    run.goto(4)
    with pytest.raises(PermissionError):
        run.signal("approve", Approval("the thief"))
    assert (run.step_count, run.recorded_steps, run.context.approvals) == (4, 6, [])
    run.signal("approve", Approval("Ada"))
    assert (run.step_count, run.recorded_steps, run.context.approvals) == (4, 4, [Approval("Ada")])


def test_a_payload_is_folded_again_on_the_way_back_and_forth() -> None:
    run = reviewed(keep=True)
    run.signal("approve", Approval("Ada"))
    run.resume()
    run.goto(4)
    assert (run.phase_name, run.context.approvals) == ("review", [])
    run.goto(5)
    assert (run.phase_name, run.context.approvals) == ("done", [Approval("Ada")])
    assert run.fork().context.approvals == [Approval("Ada")]


@INTERPRETERS
def test_a_guard_keeps_a_signal_back(interpreter: Any) -> None:
    run = Run(machine, Text(), interpreter=interpreter)
    with pytest.raises(IllegalMove, match="takes 'hurry' at 'draft' only when begun"):
        run.signal("hurry")
    run.signal("hurry", wait=True)
    assert (run.pending, run.phase_name, run.status) == (("hurry",), "draft", Status.READY)
    assert run.step() is not None
    assert (run.pending, run.phase_name, run.step_count) == ((), "review", 1)


@INTERPRETERS
def test_a_guard_that_raises_is_named_to_the_sender(interpreter: Any) -> None:
    run = Run(machine, Text(drafts=-1), interpreter=interpreter)
    for ask in (lambda: run.signal("hurry"), lambda: run.signal("hurry", wait=True), lambda: run.possible):
        with pytest.raises(GuardError, match="guard 'begun' raised ArithmeticError: less than nothing is written"):
            ask()
    assert (run.status, run.events, run.pending) == (Status.READY, [], ())


@INTERPRETERS
def test_a_guard_that_gives_no_bool_is_named_too(interpreter: Any) -> None:
    from statemachine import Guard

    signals = [Signal("go", to="draft", when=Guard("odd", lambda context: 1))]  # type: ignore[arg-type, return-value]
    with pytest.raises(GuardError, match="guard 'odd' must return True or False, but returned 1"):
        Run(desk(signals=signals), Text(), interpreter=interpreter).signal("go")


def test_the_resources_are_told_of_a_payload() -> None:
    class Screen(Resources[Text]):
        shows = -1

        def sync(self, context: Text) -> None:
            self.shows = len(context.approvals)

    screen = Screen()
    run = reviewed(resources=screen)
    run.signal("approve", Approval("Ada"))
    assert screen.shows == 1
