"""Signals that are sent while a run is running, from other threads."""

import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from desk import Approval, Draft, Text, desk, driven

from statemachine import (
    End,
    IllegalMove,
    OutcomeError,
    Run,
    Signal,
    Status,
)


def test_sent_while_it_runs_each_is_taken_at_the_first_boundary_where_it_can_be() -> None:
    with driven() as (run, _, finish):
        run.signal("approve", Approval("Ada"))
        run.signal("hurry")
        assert run.pending == ("approve", "hurry")
        assert finish() is Status.WAITING  # at the review after one draft, too early for an approval
        assert (run.step_count, run.pending) == (1, ("approve",))


def test_a_payload_of_another_type_is_refused_while_it_runs_too() -> None:
    with driven() as (run, _, _finish):
        with pytest.raises(OutcomeError, match="no payload of signal 'approve'"):
            run.signal("approve", "yes")
        with pytest.raises(ValueError, match="has no signal 'aprove'; there are: 'hurry', 'approve', 'drop'"):
            run.signal("aprove", Approval("Ada"))
        assert run.pending == ()


def test_what_is_sent_while_it_runs_and_cannot_be_entered_is_refused() -> None:
    with driven() as (run, _, finish):
        run.signal("approve", Approval("the thief"))
        run.signal("approve", Approval("Ada"))
        assert finish() is Status.DONE
    assert [(event.kind, event.outcome.by) for event in run.events] == [("refused", "the thief"), ("signal", "Ada")]
    assert run.context.approvals == [Approval("Ada")]


def test_cancel_behind_one_that_cannot_be_taken_is_taken() -> None:
    with driven() as (run, _, finish):
        run.signal("approve", Approval("Ada"))
        run.signal("drop")
        assert finish() is Status.CANCELLED
    assert [(event.number, event.kind, event.name) for event in run.events] == [
        (1, "signal", "drop"), (1, "refused", "approve"),
    ]  # fmt: skip


def test_many_threads_send_and_none_is_lost() -> None:
    """Each is taken, refused and recorded, or told to its sender."""

    class Count(Signal[Text, int]):
        def apply(self, context: Text, payload: int) -> None:
            context.notes.append(str(payload))

    class Slow(Draft):
        pass

    slow = Slow("draft")
    signals = [Count("count", to=slow, sources=(slow,)), Signal("drop", to=End("dropped", status=Status.CANCELLED))]
    run, told, each = Run(desk(slow, signals=signals, edits=[]), Text(10**9)), [], 300

    def send(first: int) -> None:
        for number in range(first, first + each):
            with suppress(IllegalMove):
                run.signal("count", number)
                continue
            told.append(number)

    threads = [threading.Thread(target=send, args=(each * n,)) for n in range(4)]
    driver = threading.Thread(target=run.start)
    driver.start()
    for thread in threads:
        thread.start()
    threads[0].join(30)
    run.signal("drop")
    for thread in [driver, *threads]:
        thread.join(30)
        assert not thread.is_alive()
    taken = [event.outcome for event in run.events if (event.kind, event.name) == ("signal", "count")]
    refused = [event.outcome for event in run.events if event.kind == "refused"]
    assert sorted(taken + refused + told) == list(range(4 * each))
    assert run.context.notes == [str(number) for number in taken]
    assert run.pending == ()


def test_one_that_comes_too_late_is_told() -> None:
    """The run ends after its sender saw that it had not, and before the signal is in the inbox."""
    reached, go_on, told = threading.Event(), threading.Event(), []

    def hold_up(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_name == "send" and frame.f_code.co_filename.endswith("inbox.py"):
            reached.set()
            assert go_on.wait(30)

    def send(run: Run[Text]) -> None:
        sys.settrace(hold_up)
        try:
            run.signal("hurry")
        except IllegalMove as error:
            told.append(str(error))
        finally:
            sys.settrace(None)

    with driven() as (run, _, finish):
        sender = threading.Thread(target=send, args=(run,))
        sender.start()
        assert reached.wait(30)
        run.signal("drop")
        assert finish() is Status.CANCELLED
        go_on.set()
        sender.join(30)
    assert told == [f"cannot signal run {run.id}: it is cancelled"]
    assert ([event.name for event in run.events], run.pending) == (["drop"], ())
