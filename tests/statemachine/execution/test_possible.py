"""What a run says may be sent to it now, and edits that belong somewhere."""

import threading
from contextlib import suppress
from typing import Any

import pytest
from desk import Draft, Text, desk, driven, machine

from statemachine import (
    IllegalMove,
    Possible,
    Run,
    Status,
)

INTERPRETERS = pytest.mark.parametrize("interpreter", ["compiled", "transitions"])


@INTERPRETERS
def test_possible_is_what_would_be_taken_now(interpreter: Any) -> None:
    run = Run(machine, Text(), interpreter=interpreter, keep=True)
    assert run.possible == Possible(signals=("drop",))
    run.step()
    assert run.possible == Possible(signals=("hurry", "drop"))
    run.resume()
    assert run.possible == Possible(signals=("hurry", "approve", "drop"), edits=("correct",))
    run.edit("correct", drafts=2)
    assert run.possible == Possible(signals=("hurry", "drop"), edits=("correct",))
    run.signal("drop")
    assert run.possible == Possible()
    run.goto(0)
    assert run.possible == Possible(signals=("drop",))
    run.close()
    assert run.possible == Possible()


def test_while_it_runs_possible_is_what_will_be_taken_wherever_it_comes_to_rest() -> None:
    with driven() as (run, one_more, finish):
        assert run.possible == Possible(signals=("drop",))
        one_more()
        assert run.possible == Possible(signals=("drop",))
        assert finish() is Status.WAITING
        assert run.possible.edits == ("correct",)


def test_a_failed_run_takes_edits_and_no_signals() -> None:
    class Broken(Draft):
        def run(self, context: Text) -> int:
            raise RuntimeError

    fails = Run(desk(Broken("draft"), edits=[]), Text())
    with suppress(Exception):
        fails.start()
    assert (fails.status, fails.possible) == (Status.FAILED, Possible())


def test_possible_may_be_asked_from_any_thread_and_hinders_nobody() -> None:
    run, stop, seen = Run(machine, Text(10**9)), threading.Event(), set()

    def ask() -> None:
        while not stop.is_set():
            seen.add(run.possible)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2000):
            run.step()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert run.step_count == 2000
    assert seen <= {Possible(("drop",)), Possible(("hurry", "drop"))}


def test_an_edit_is_made_only_at_its_sources() -> None:
    run = Run(machine, Text())
    with pytest.raises(IllegalMove, match="rests at 'draft', but edit 'correct' may be made only at 'review'"):
        run.edit("correct", drafts=9)
    assert (run.context, run.events) == (Text(), [])
    run.start()
    run.edit("correct", drafts=9)
    assert run.context.drafts == 9
    run.signal("hurry")
    with pytest.raises(IllegalMove, match="may be made only at 'review'"):
        run.edit("correct", drafts=1)
