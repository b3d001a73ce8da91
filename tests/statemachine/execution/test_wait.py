"""A run rests where it waits, whoever drives it; an answer is entered whole or not at all, and replayed as recorded."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from approval import DAY, Answer, Order, approve, machine, waiting
from forging import forged, with_step
from hypothesis import settings
from hypothesis import strategies as st
from rule_checks import BRIEF, hold, hold_and_see

from statemachine import (
    End,
    IllegalMove,
    Journal,
    JournalWriter,
    Machine,
    OutcomeError,
    Phase,
    Run,
    Status,
    Transition,
    play,
    restore,
    verify,
)
from statemachine.record.snapshot import load
from statemachine.testing import machine_rules

INTERPRETERS = ("compiled", "transitions")
YES = Answer(yes=True, by="me")


def drive_by(way: str, run: Run[Order]) -> None:
    if way == "until":
        run.until(lambda run: False)
    elif way == "iteration":
        assert [step.phase for step in run] == ["price"]
    elif way == "each":
        assert [step.phase for step in run.each("price")] == ["price"]
    else:
        {"start": run.start, "step": run.step}[way]()


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("way", ["start", "step", "until", "iteration", "each"])
def test_every_way_of_driving_comes_to_rest_at_a_wait(way: str, interpreter: Any) -> None:
    run = Run(machine, Order(100), interpreter=interpreter)
    drive_by(way, run)
    assert (run.status, run.phase, run.step_count) == (Status.WAITING, approve, 1)
    moves: list[Callable[[], object]] = [run.resume, run.step, lambda: run.until(approve), lambda: list(run)]
    for move in moves:
        with pytest.raises(
            IllegalMove, match=r"it is waiting at 'approve': give it what it waits for, with answer\(\)"
        ):
            move()
    assert (run.status, run.step_count, run.context) == (Status.WAITING, 1, Order(100, asked=1))
    step = run.answer(YES)
    assert (step.phase, step.target, step.outcome) == ("approve", "ship", YES)
    assert run.status is Status.PAUSED
    assert run.resume() is Status.DONE


def test_a_run_that_begins_with_a_wait() -> None:
    ends = machine.phases["shipped"]
    run = Run(Machine("asks first", start=approve, transitions=[Transition(approve, ends)]), Order(1))
    with pytest.raises(IllegalMove, match="it is ready, not waiting"):
        run.answer(YES)
    assert run.step() is None
    assert run.status is Status.WAITING
    run.answer(YES)
    assert (run.status, run.step_count) == (Status.DONE, 1)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_an_answer_of_none_is_entered_where_the_type_has_it(interpreter: Any, tmp_path: Path) -> None:
    run = waiting(interpreter=interpreter, journal=JournalWriter(tmp_path / "j"))
    assert run.answer(None).target == "price"
    assert run.context.answers == [None]
    assert run.resume() is Status.WAITING
    run.answer(YES)
    run.resume()
    assert run.context.answers == [None, YES]
    run.close()
    for again in (Run(machine, Order(100)), Run(machine, Order(100), interpreter="transitions")):
        assert verify(Journal.open(tmp_path / "j"), again).divergence is None
        assert again.context == run.context


@pytest.mark.parametrize("answer", [5, "yes", {"yes": 1}, {"by": "me"}, Answer(yes=1), {1, 2}, float("nan")])
def test_what_is_no_answer_changes_nothing(answer: object, tmp_path: Path) -> None:
    path = tmp_path / "j"
    run = waiting(journal=JournalWriter(path))
    before = path.read_bytes()
    with pytest.raises(OutcomeError):
        run.answer(answer)
    assert (run.status, run.step_count, run.context) == (Status.WAITING, 1, Order(100, asked=1))
    assert path.read_bytes() == before
    run.answer({"yes": True, "by": "me"})  # as a form on a page would give it
    assert run.context.answers == [YES]


@pytest.mark.parametrize("back", [False, True])
def test_an_answer_that_cannot_be_entered_leaves_the_run_waiting(back: bool) -> None:
    run = waiting()
    if back:
        run.answer(None)
        run.goto(1)
    with pytest.raises(PermissionError, match="approves nothing") as raised:
        run.answer(Answer(yes=True, by="the thief"))
    assert "still waits" in raised.value.__notes__[0]
    assert (run.status, run.step_count, run.context) == (Status.WAITING, 1, Order(100, asked=1))
    assert run.recorded_steps == (2 if back else 1)
    run.answer(YES)
    assert run.resume() is Status.DONE


def test_an_answer_is_in_the_journal_when_the_call_returns(tmp_path: Path) -> None:
    """Whatever happens to the process then: it is killed here by the caller's very next act."""
    code = f"""
import os, signal
from approval import *
from statemachine import JournalWriter
run = waiting(journal=JournalWriter({str(tmp_path / "j")!r}))
run.answer({{"yes": True, "by": "me"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert killed.returncode == -9
    run = Run(machine, Order(100))
    assert play(Journal.open(tmp_path / "j"), run) is None
    assert (run.context.answers, run.phase.name) == ([YES], "ship")


def test_an_approval_that_takes_days(tmp_path: Path) -> None:
    """One process asks and ends; another restores, and answers."""
    run = waiting(amount=7)
    run.snapshot(tmp_path / "s")
    run.close()
    code = f"""
from approval import *
from statemachine import restore
from statemachine.record.snapshot import load
run = Run(machine, Order(7))
assert restore(load({str(tmp_path / "s")!r}), run) is None
assert run.status is Status.WAITING, run
assert run.deadline == 1000 + DAY
run.answer(Answer(True, "me"))
print(run.resume(), run.context.amount)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["done", "7"]


def test_a_deadline_is_data_and_its_answer_is_declared(tmp_path: Path) -> None:
    run = Run(machine, Order(100), journal=JournalWriter(tmp_path / "j"))
    assert run.deadline is None
    with pytest.raises(IllegalMove, match="ready, not waiting"):
        run.time_out()
    run.start()
    assert run.deadline == 1_000 + DAY
    run.time_out()
    assert (run.status, run.deadline, run.context.answers) == (Status.CANCELLED, None, [Answer(yes=False)])
    assert verify(Journal.open(tmp_path / "j"), Run(machine, Order(100))).divergence is None


def test_a_signal_ends_the_waiting_and_another_thread_may_answer() -> None:
    run = waiting()
    run.signal("withdraw")
    assert run.status is Status.CANCELLED
    run = waiting()
    thread = threading.Thread(target=run.answer, args=(YES,))
    thread.start()
    thread.join()
    assert run.resume() is Status.DONE


def test_a_fork_and_a_rewound_run_wait_where_they_stand() -> None:
    run = waiting()
    fork = run.fork()
    assert (fork.status, run.status) == (Status.WAITING, Status.WAITING)
    run.answer(YES)
    run.resume()
    fork.answer(Answer(yes=False))
    assert (run.status, fork.status) == (Status.DONE, Status.CANCELLED)
    again = waiting()
    again.answer(None)
    again.goto(1)
    assert again.status is Status.WAITING
    again.goto(0)
    assert again.status is Status.PAUSED


def test_a_journal_with_a_forged_answer_is_refused(tmp_path: Path) -> None:
    """A verified run takes the recorded answer: the guards then lead elsewhere than the record says."""
    run = waiting(journal=JournalWriter(tmp_path / "j"))
    run.answer(YES)
    run.resume()
    run.close()
    path = forged(tmp_path / "j", tmp_path / "forged", with_step(1, o={"yes": False, "by": "me"}))
    verdict = verify(Journal.open(path), Run(machine, Order(100)))
    assert verdict.divergence is not None
    assert verdict.divergence.field == "guards"


def test_the_rules_hold_for_a_machine_that_waits() -> None:
    contexts = st.builds(Order, st.integers(0, 3))
    rules = machine_rules(machine, contexts, may_raise=PermissionError, max_steps=12)
    hold_and_see(rules, "transitions", options=settings(BRIEF, max_examples=150))
    answers = {"approve": st.just(Answer(yes=True, by="the thief"))}
    hold(machine_rules(machine, contexts, answers=answers, may_raise=PermissionError))
    with pytest.raises(ValueError, match="answers are given to price, but what waits is approve"):
        machine_rules(machine, contexts, answers={"price": st.none()})


def test_a_wait_is_drawn_as_one() -> None:
    from statemachine import to_dot, to_mermaid
    from statemachine.record.header import machine_record
    from statemachine.views.chart import Chart

    for drawn in (machine, Chart.of_record(machine_record(machine))):
        assert 'state "approve #183; waits" as' in to_mermaid(drawn)
        [line] = [line for line in to_dot(drawn).splitlines() if "waits" in line]
        assert "dashed" in line


def test_a_wait_has_its_own_fingerprint() -> None:
    end: End[Order] = End("end")
    worked: Phase[Order, None] = Phase("approve")
    of_a_phase = Machine("m", start=worked, transitions=[Transition(worked, end)])
    assert Machine("m", start=approve, transitions=[Transition(approve, end)]).fingerprint != of_a_phase.fingerprint


def test_restoring_where_a_snapshot_has_no_past(tmp_path: Path) -> None:
    run = waiting()
    run.snapshot(tmp_path / "s", history=False)
    other = Run(machine, Order(100))
    assert restore(load(tmp_path / "s"), other) is None
    assert other.status is Status.WAITING
    other.answer(YES)
    assert other.resume() is Status.DONE
