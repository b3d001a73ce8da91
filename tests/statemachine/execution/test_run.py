"""A run rests between steps only; its life has rules; failure leaves the context as it was."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from statemachine import (
    End,
    IllegalMove,
    Journal,
    JournalWriter,
    Machine,
    Phase,
    PhaseError,
    Resources,
    Run,
    Signal,
    Status,
    Transition,
    guard,
)
from statemachine.execution.timeline import Event
from statemachine.record.records import ErrorRecord


@dataclass(slots=True)
class Tally:
    count: int = 0
    limit: int = 10
    seen: list[int] = field(default_factory=list)
    explode_at: int | None = None


class Add(Phase[Tally, int]):
    def run(self, context: Tally) -> int:
        if context.count == context.explode_at:
            context.seen.append(-1)  # breaks the contract of run(), which failure must still put right
            raise ZeroDivisionError("boom")
        return context.count + 1

    def apply(self, context: Tally, outcome: int) -> None:
        context.count = outcome
        context.seen.append(outcome)


class Watch(Resources[Tally]):
    """Counts the releases."""

    def __init__(self, released: list[Tally]) -> None:
        self._released = released

    def release(self, context: Tally) -> None:
        self._released.append(context)


@guard
def full(context: Tally) -> bool:
    return context.count >= context.limit


add, rest = Add(), Phase[Tally, None]("rest")
done, cancelled = End[Tally]("done"), End[Tally]("cancelled", status=Status.CANCELLED)
machine = Machine(
    "tally",
    start=add,
    transitions=[Transition(add, rest), Transition(rest, add, ~full), Transition(rest, done, full)],
    signals=[Signal("cancel", to=cancelled), Signal("again", to=add, sources=(rest,))],
)


def test_a_run_goes_from_ready_to_done() -> None:
    ended = []
    run = Run(machine, Tally(limit=3), resources=Watch(ended))
    assert run.status is Status.READY
    assert run.start() is Status.DONE
    assert run.context.seen == [1, 2, 3]
    assert [(step.phase, step.target) for step in run.steps()][-2:] == [("add", "rest"), ("rest", "done")]
    assert ended == [run.context]


def test_stepping_and_iterating_are_the_same_run() -> None:
    whole, stepped, iterated = (Run(machine, Tally(limit=4)) for _ in range(3))
    whole.start()
    while not stepped.status.ended:
        stepped.step()
    assert list(iterated) == list(stepped.steps()) == list(whole.steps())
    assert iterated.context == stepped.context == whole.context


def test_each_step_of_a_phase_is_given_and_the_run_rests_there() -> None:
    whole, run = Run(machine, Tally(limit=4)), Run(machine, Tally(limit=4))
    whole.start()
    given = []
    for step in run.each(rest):
        assert run.status in (Status.PAUSED, Status.DONE)
        assert step.number == run.step_count - 1
        given.append(step)
    assert given == [step for step in whole.steps() if step.phase == "rest"]
    assert list(run.steps()) == list(whole.steps())
    assert run.context == whole.context
    with pytest.raises(ValueError, match="machine 'tally' has no phase 'other': expected one of add, rest, done"):
        run.each(Phase[Tally, None]("other"))


def test_a_pause_ends_a_loop_over_the_steps_of_a_phase_also_between_them() -> None:
    class Pausing(Add):
        def run(self, context: Tally) -> int:
            if context.count == 3:
                run.pause()
            return super().run(context)

    first = Pausing("add")
    run = Run(
        Machine(
            "pausing",
            start=first,
            transitions=[Transition(first, rest), Transition(rest, first, ~full), Transition(rest, done, full)],
        ),
        Tally(limit=6),
    )
    assert [step.number for step in run.each(rest)] == [1, 3, 5]
    assert (run.status, run.step_count, run.phase) == (Status.PAUSED, 7, rest)
    assert [step.number for step in run.each(rest)] == [7, 9, 11]
    assert run.status is Status.DONE


def test_until_a_phase_a_guard_or_a_condition() -> None:
    run = Run(machine, Tally(limit=5))
    assert run.until(rest) is Status.PAUSED
    assert (run.phase, run.context.count) == (rest, 1)
    run.until(rest)
    assert run.context.count == 2
    run.until(lambda run: run.context.count == 4)
    assert (run.phase, run.context.count, run.step_count) == (rest, 4, 7)
    run.until(full)
    assert run.context.count == 5
    assert run.guards == {"full": True}
    assert run.resume() is Status.DONE


def test_a_breakpoint_that_raises_leaves_the_run_resting() -> None:
    run = Run(machine, Tally(limit=2))
    with pytest.raises(KeyError):
        run.until(lambda run: {}["missing"])
    assert run.status is Status.PAUSED
    assert run.step_count == 1
    assert run.resume() is Status.DONE


@pytest.mark.parametrize("interpreter", ["compiled", "transitions"])
def test_an_exception_leaves_the_run_failed_and_the_context_as_before_the_phase(interpreter: str) -> None:
    ended = []
    run = Run(machine, Tally(explode_at=3), run_id="r1", interpreter=interpreter, resources=Watch(ended))
    with pytest.raises(PhaseError, match=r"run r1 failed in phase 'add' at step 6: ZeroDivisionError: boom") as failure:
        run.start()
    assert (failure.value.run_id, failure.value.phase, failure.value.step) == ("r1", "add", 6)
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
    assert (run.status, run.phase, run.step_count) == (Status.FAILED, add, 6)
    assert run.context == Tally(count=3, seen=[1, 2, 3], explode_at=3)
    assert ended == []  # it can be tried again
    run.close()
    assert ended == [run.context]


def test_an_exception_that_cannot_say_what_it_is_fails_the_run_as_others_do(tmp_path: Path) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

        __repr__ = __str__

    class Raises(Phase[Tally, int]):
        def run(self, context: Tally) -> int:
            raise Mute

    raises, released = Raises(), []
    run = Run(
        Machine("mute", raises, [Transition(raises, End("end"))]), Tally(), resources=Watch(released),
        journal=JournalWriter(tmp_path / "a.jsonl"),
    )  # fmt: skip
    with pytest.raises(PhaseError, match=r"step 0: Mute: \(its text raised ZeroDivisionError\)") as failure:
        run.start()
    assert isinstance(failure.value.__cause__, Mute)
    assert run.status is Status.FAILED
    [record] = [record for record in Journal.open(tmp_path / "a.jsonl").records() if isinstance(record, ErrorRecord)]
    assert (record.exception, record.message) == ("Mute", "(its text raised ZeroDivisionError)")
    run.close()
    assert released == [run.context]


def test_an_apply_that_fails_half_way_is_undone() -> None:
    class Half(Phase[Tally, int]):
        def run(self, context: Tally) -> int:
            return 7

        def apply(self, context: Tally, outcome: int) -> None:
            context.count = outcome
            raise OSError("disk")

    half = Half()
    broken = machine.insert(half, between=(add, rest))
    run = Run(broken, Tally())
    with pytest.raises(PhaseError, match="phase 'half' at step 1: OSError: disk"):
        run.start()
    assert run.context == Tally(count=1, seen=[1])


def test_a_keyboard_interrupt_inside_a_phase_is_still_one() -> None:
    class Interrupted(Phase[Tally, None]):
        def run(self, context: Tally) -> None:
            raise KeyboardInterrupt

    run = Run(machine.insert(Interrupted(), between=(add, rest)), Tally())
    with pytest.raises(KeyboardInterrupt):
        run.start()
    assert run.status is Status.FAILED
    assert run.context == Tally(count=1, seen=[1])


def test_pinned_fields_are_never_copied() -> None:
    @dataclass
    class Pinned:
        __pinned__ = ("lock", "alias")
        lock: object
        alias: object
        count: int = 0

    class Bump(Phase[Pinned, int]):
        def run(self, context: Pinned) -> int:
            if context.count == 2:
                raise ValueError("enough")
            return context.count + 1

        def apply(self, context: Pinned, outcome: int) -> None:
            context.count = outcome

    bump = Bump()
    never = guard(lambda context: False)
    pinned = Machine(
        "pinned", start=bump, transitions=[Transition(bump, bump, ~never), Transition(bump, End("end"), never)]
    )
    lock = threading.Lock()
    context = Pinned(lock, lock)
    with pytest.raises(PhaseError):
        Run(pinned, context).start()
    assert context.lock is lock
    assert context.count == 2
    with pytest.raises(TypeError, match=r"field 'thing' of Unpinned cannot be copied.*__pinned__"):
        Run(pinned, type("Unpinned", (), {"__init__": lambda self: setattr(self, "thing", lock)})()).start()


def test_another_thread_pauses_at_the_next_boundary_and_signals() -> None:
    class Held(Phase[Tally, None]):
        """Waits, each time it runs, until it may go on."""

        def run(self, context: Tally) -> None:
            reached.release()
            assert go_on.acquire(timeout=60)

    reached, go_on = threading.Semaphore(0), threading.Semaphore(0)
    run = Run(machine.insert(Held(), between=(add, rest)), Tally(limit=10**9))
    with ThreadPoolExecutor() as pool:
        driven = pool.submit(run.start)
        assert reached.acquire(timeout=60)
        here = run.step_count
        with pytest.raises(IllegalMove, match="driven by another thread"):
            run.step()
        run.pause()
        go_on.release()
        assert run.wait(60) is driven.result(60) is Status.PAUSED
        assert run.step_count == here + 1 == len(list(run.steps()))

        driven = pool.submit(run.resume)
        assert reached.acquire(timeout=60)
        here = run.step_count
        run.signal("cancel")
        go_on.release()
        assert driven.result(60) is Status.CANCELLED
    assert run.events == [Event(here + 1, "signal", "cancel")]


def test_a_pause_asked_for_inside_a_loop_over_the_run_ends_the_loop() -> None:
    run = Run(machine, Tally())
    for step in run:
        if step.number == 4:
            run.pause()
    assert (run.status, run.step_count) == (Status.PAUSED, 5)
    assert [step.number for step in run][:2] == [5, 6]


def test_a_pause_before_the_start_takes_effect_at_once() -> None:
    run = Run(machine, Tally())
    run.pause()
    assert run.start() is Status.PAUSED
    assert run.step_count == 0
    assert run.resume() is Status.DONE


def test_signals_from_within_a_phase_wait_for_the_boundary() -> None:
    class Cancel(Phase[Tally, int]):
        def run(self, context: Tally) -> int:
            run.signal("cancel")
            assert run.status is Status.RUNNING
            return 99

        def apply(self, context: Tally, outcome: int) -> None:
            context.count = outcome

    run = Run(machine.insert(Cancel(), between=(add, rest)), Tally())
    assert run.start() is Status.CANCELLED
    assert run.context.count == 99
    assert run.events == [Event(2, "signal", "cancel")]


def test_a_signal_taken_only_at_some_phases() -> None:
    run = Run(machine, Tally(limit=2))
    with pytest.raises(IllegalMove, match="rests at 'add', but 'again' is taken only at 'rest'"):
        run.signal("again")
    run.step()
    run.signal("again")
    assert run.phase is add
    assert run.resume() is Status.DONE
    with pytest.raises(ValueError, match="no signal 'stop'; there are: 'cancel', 'again'"):
        run.signal("stop")


class Life(RuleBasedStateMachine):
    """Any sequence of moves: legal ones do what they say, illegal ones are refused and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Tally] = []
        self.run = Run(machine, Tally(limit=6), resources=Watch(self.ended))

    @rule(verb=st.sampled_from(["start", "resume", "step", "until", "pause", "cancel"]))
    def move(self, verb: str) -> None:
        run, before, steps = self.run, self.run.status, self.run.step_count
        allowed = {
            "start": before is Status.READY,
            "resume": before is Status.PAUSED,
            "step": before in (Status.READY, Status.PAUSED),
            "until": before in (Status.READY, Status.PAUSED),
            "pause": not before.ended,
            "cancel": not before.ended,
        }[verb]
        moves = {"until": lambda: run.until(rest), "cancel": lambda: run.signal("cancel")}
        if not allowed:
            with pytest.raises(IllegalMove, match=rf"cannot .*{run.id}.*{before}"):
                moves.get(verb, getattr(run, verb, None))()
            assert (run.status, run.step_count) == (before, steps)
            return
        moves.get(verb, getattr(run, verb, None))()
        if verb == "step" and not (before is Status.READY and steps == run.step_count):
            assert run.step_count == steps + 1

    @invariant()
    def counts_agree(self) -> None:
        run = self.run
        assert run.context.seen == list(range(1, run.context.count + 1))
        assert run.context.count == sum(step.phase == "add" for step in run.steps())
        assert self.ended == ([run.context] if run.status.ended else [])


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestLife = Life.TestCase

SCRIPT = """
import sys
from test_run import Run, Tally, machine
if "configured" in sys.argv:
    import structlog
    structlog.configure(processors=[structlog.processors.JSONRenderer(sort_keys=True)])
run = Run(machine, Tally(limit=2), run_id="abc", log_steps="steps" in sys.argv)
run.until(lambda run: True)
run.pause(); run.resume()
bad = Run(machine, Tally(explode_at=0), run_id="bad")
try:
    bad.start()
except Exception:
    pass
"""


def script(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert done.stderr == ""
    return done.stdout


def test_an_application_without_structlog_sees_nothing() -> None:
    assert script() == ""
    assert script("steps") == ""


def test_structlog_tells_the_life_of_a_run_with_its_id() -> None:
    lines = script("configured").splitlines()
    assert ['"event": "run.started"' in line for line in lines] == [True, False, True, False]
    assert '"event": "run.finished"' in lines[1]
    assert '"event": "run.failed"' in lines[3]
    assert all('"run_id": "abc"' in line for line in lines[:2])
    assert "ZeroDivisionError" in lines[3]
    assert sum('"event": "run.step"' in line for line in script("configured", "steps").splitlines()) == 4
