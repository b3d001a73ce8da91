"""Signals as events: what they carry, when they are taken, in what order, and what becomes of those that are not."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from desk import Approval, Approve, Draft, Text, desk, machine, reviewed
from interrupting import Interrupter
from logged import logged

from statemachine import (
    End,
    GuardError,
    IllegalMove,
    Machine,
    OutcomeError,
    Phase,
    Possible,
    Resources,
    Run,
    Signal,
    Status,
    Transition,
)
from statemachine.execution.timeline import Event

INTERPRETERS = pytest.mark.parametrize("interpreter", ["compiled", "transitions"])


# --- at rest ----------------------------------------------------------------------------------------------------------


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


# --- the order in which they are taken --------------------------------------------------------------------------------


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


# --- while it is running, and from other threads ----------------------------------------------------------------------


class Gate(Draft):
    """Says when it is at work, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__("draft")
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, context: Text) -> int:
        self.entered.release()
        assert self.open.acquire(timeout=30)
        return super().run(context)


@contextmanager
def driven(length: int = 4) -> Iterator[tuple[Run[Text], Callable[[], None], Callable[[], Status]]]:
    """A run that another thread drives, standing in its first draft; what lets it write one more; and to its rest."""
    gate = Gate()
    run = Run(desk(gate), Text(length))
    driver = threading.Thread(target=run.start)
    driver.start()
    assert gate.entered.acquire(timeout=30)

    def one_more() -> None:
        gate.open.release()
        assert gate.entered.acquire(timeout=30)

    def finish() -> Status:
        for _ in range(length):
            gate.open.release()
        driver.join(30)
        assert not driver.is_alive()
        return run.status

    try:
        yield run, one_more, finish
    finally:
        finish()


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


# --- what is possible -------------------------------------------------------------------------------------------------


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


# --- edits that belong somewhere --------------------------------------------------------------------------------------


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


# --- interrupts -------------------------------------------------------------------------------------------------------


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


# --- both interpreters, one machine -----------------------------------------------------------------------------------


def test_the_library_holds_the_same_table() -> None:
    [hurry_first, hurry_second] = machine.signals_named("hurry")
    assert (hurry_first.condition, hurry_second.condition) == ("begun", "")
    events = machine.transitions_machine.events["hurry"].transitions
    assert {source: [str(way.dest) for way in ways] for source, ways in events.items()} == {
        "draft": ["review"], "review": ["publish"],
    }  # fmt: skip


def test_a_signal_says_what_it_is() -> None:
    assert [str(signal) for signal in machine.signals] == [
        "hurry: draft -> review when begun",
        "hurry: review -> publish",
        "approve(Approval): review -> publish when written",
        "drop: any phase -> dropped",
    ]


def test_its_fingerprint_tells_guards_payloads_and_sources_of_edits() -> None:
    class Other(Signal[Text, int]):
        def apply(self, context: Text, payload: int) -> None: ...

    end: End[Text] = End("end")
    a: Phase[Text, None] = Phase("a")

    def made(*signals: Signal[Text, Any], **options: Any) -> str:
        return Machine("m", start=a, transitions=[Transition(a, end)], signals=signals, **options).fingerprint

    guarded = Signal("go", to=a, when=machine.signals[0].when)
    prints = [made(), made(Signal("go", to=a)), made(guarded), made(Other("go", to=a)), made(Approve("go", to=a))]
    assert len(set(prints)) == 5
    edit, bound = (replace(machine, edits=[type(machine.edits[0])("correct", sources=at)]) for at in ((), ("review",)))
    assert edit.fingerprint != bound.fingerprint == machine.fingerprint
