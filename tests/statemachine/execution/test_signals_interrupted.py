"""A signal that is interrupted was taken or was not."""

import pytest
from desk import Approval, Text, machine, reviewed
from interrupting import Interrupter

from statemachine import (
    Run,
    Status,
)
from statemachine.execution.timeline import Event


@pytest.mark.slow
@pytest.mark.parametrize("second", [0, 1])
@pytest.mark.parametrize("by", ["Ada", "the thief"])
def test_an_interrupted_signal_was_taken_or_was_not(by: str, second: int) -> None:
    at = 0
    while True:
        run = reviewed(keep=True)
        interrupter = Interrupter(at, second)
        try:
            with interrupter:
                run.signal("approve", Approval(by))
        except (KeyboardInterrupt, PermissionError):
            pass
        if not interrupter.fired:
            break
        run.goto(run.step_count)  # any move mends
        taken = [event.kind for event in run.events] == ["signal"]
        assert run.events == [Event(4, "signal", "approve", Approval("Ada"))] * taken
        assert run.context == Text(drafts=4, approvals=[Approval("Ada")] * taken)
        assert (run.phase_name, run.pending) == ("publish" if taken else "review", ())
        at += 1
    assert at > 10


@pytest.mark.slow
@pytest.mark.parametrize("second", [0, 1])
@pytest.mark.parametrize("by", ["Ada", "the thief"])
def test_interrupted_on_the_way_what_waits_is_taken_or_refused_once(by: str, second: int) -> None:
    """Sent before it starts, with another that is left at the end; the interrupt comes anywhere in between."""
    at = 0
    while True:
        run = Run(machine, Text(length=2), keep=True)
        run.signal("approve", Approval(by), wait=True)
        run.signal("approve", Approval("late"), wait=True)
        interrupter = Interrupter(at, second)
        try:
            with interrupter:
                run.start()
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        run.goto(run.step_count)
        while not run.status.over:
            run.resume() if run.status is not Status.READY else run.start()
        assert run.status is Status.DONE, at
        kinds = [(event.kind, event.outcome.by) for event in run.events]
        expected = [("signal", "Ada"), ("refused", "late")] if by == "Ada" else [("refused", by), ("signal", "late")]
        assert kinds == expected, at
        assert run.context.approvals == [Approval("Ada" if by == "Ada" else "late")], at
        assert run.pending == ()
        at += 1
    assert at > 30
