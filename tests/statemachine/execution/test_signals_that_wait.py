"""Signals that wait: in what order they are taken, and what becomes of those that are not."""

from collections.abc import Callable

import pytest
from desk import Approval, Draft, Text, desk, machine, reviewed
from logged import logged

from statemachine import (
    IllegalMove,
    Run,
    Status,
)
from statemachine.execution.timeline import Event


def test_the_first_that_can_be_taken_is_taken() -> None:
    run = Run(machine, Text())
    run.signal("hurry", wait=True)  # not before something is written
    run.signal("approve", Approval("Ada"), wait=True)  # not before the review
    run.signal("drop")
    assert (run.status, run.step_count) == (Status.CANCELLED, 0)
    assert run.events == [
        Event(0, "signal", "drop"),
        Event(0, "refused", "hurry", None, "the run was cancelled before it could be taken"),
        Event(0, "refused", "approve", Approval("Ada"), "the run was cancelled before it could be taken"),
    ]
    assert run.pending == ()


def test_one_that_waits_is_taken_as_soon_as_it_can_be_and_before_those_sent_later() -> None:
    run = Run(machine, Text())
    run.signal("approve", Approval("first"), wait=True)
    run.signal("approve", Approval("second"), wait=True)
    assert run.start() is Status.DONE
    assert run.context.approvals == [Approval("first")]
    assert run.events == [
        Event(4, "signal", "approve", Approval("first")),
        Event(5, "refused", "approve", Approval("second"), "the run was done before it could be taken"),
    ]


def test_a_move_lets_those_in_that_waited() -> None:
    run = reviewed()
    run.edit("correct", drafts=1)
    run.signal("approve", Approval("Ada"), wait=True)
    assert (run.phase_name, run.pending) == ("review", ("approve",))
    run.edit("correct", drafts=4)
    assert (run.phase_name, run.pending) == ("publish", ())


def test_what_waits_and_cannot_be_entered_is_refused_and_logged_and_the_run_goes_on() -> None:
    with logged() as logs:
        run = Run(machine, Text())
        run.signal("approve", Approval("the thief"), wait=True)
        assert run.start() is Status.WAITING
    reason = "PermissionError: the thief approves nothing"
    assert run.events == [Event(4, "refused", "approve", Approval("the thief"), reason)]
    assert (run.context, run.pending) == (Text(drafts=4), ())
    [told] = [line for line in logs if line["event"] == "run.signal_refused"]
    assert (told["signal"], told["reason"], told["phase"], told["log_level"]) == (
        "approve",
        reason,
        "review",
        "warning",
    )
    run.answer("good")
    assert run.resume() is Status.DONE


def test_one_whose_guard_raises_when_its_turn_comes_is_refused() -> None:
    class Spoil(Draft):
        def run(self, context: Text) -> int:
            return -1 if context.drafts == 0 else 9

    run = Run(desk(Spoil()), Text())
    run.signal("hurry", wait=True)
    assert run.start() is Status.WAITING
    [event] = run.events
    assert event[:3] == (1, "refused", "hurry")
    assert event.reason == "GuardError: guard 'begun' raised ArithmeticError: less than nothing is written"


def test_in_its_past_a_run_keeps_what_cannot_be_entered_until_it_goes_on() -> None:
    run = reviewed(keep=True)
    run.answer("good")
    assert run.resume() is Status.DONE
    run.goto(2)
    run.signal("approve", Approval("the thief"), wait=True)
    run.goto(4)
    assert (run.phase_name, run.recorded_steps, run.pending, run.events) == ("review", 6, ("approve",), [])
    run.answer("better")
    assert run.resume() is Status.DONE
    assert (run.context.notes, run.pending) == (["better"], ())
    [event] = run.events
    assert event.kind == "refused"


def test_a_failed_run_keeps_what_waits() -> None:
    class Moody(Draft):
        calm = False

        def run(self, context: Text) -> int:
            if not self.calm:
                raise RuntimeError("not today")
            return super().run(context)

    draft = Moody()
    run = Run(desk(draft), Text())
    run.signal("hurry", wait=True)
    with pytest.raises(RuntimeError, match="not today"):
        _cause_of(run.start)
    assert (run.status, run.pending) == (Status.FAILED, ("hurry",))
    with pytest.raises(IllegalMove, match="it is failed"):
        run.signal("drop")
    draft.calm = True
    assert run.resume() is Status.WAITING
    assert (run.step_count, run.pending) == (1, ())


def _cause_of(move: Callable[[], object]) -> None:
    try:
        move()
    except Exception as error:
        raise error.__cause__ or error from None
