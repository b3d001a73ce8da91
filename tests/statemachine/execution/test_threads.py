"""Other threads and other processes: who is refused, who is heard, and what nobody can break from outside."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from statemachine_recorded import Walk, machine

from statemachine import End, IllegalMove, Machine, Phase, Resources, Run, Signal, Status, Transition, guard

TESTS = Path(__file__).parents[2]


class Gate(Phase[Walk, int]):
    """A phase that says when it is at work, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__("gate")
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, context: Walk) -> int:
        self.entered.release()
        assert self.open.acquire(timeout=30)
        return context.bonus + 1

    def apply(self, context: Walk, outcome: int) -> None:
        context.bonus = outcome


@guard
def over(context: Walk) -> bool:
    return context.bonus >= context.limit


class Rows(Resources[Walk]):
    def __init__(self) -> None:
        self.released = 0
        self.saving: Callable[[], None] = lambda: None
        self.syncing: Callable[[], None] = lambda: None

    def release(self, context: Walk) -> None:
        self.released += 1

    def save(self, context: Walk, **options: object) -> dict:
        self.saving()
        return {}

    def sync(self, context: Walk) -> None:
        self.syncing()


@contextmanager
def driven(limit: int = 3) -> Iterator[tuple[Run[Walk], Gate, Rows]]:
    """A run that another thread drives, standing inside a phase."""
    gate, rows = Gate(), Rows()
    gated = Machine(
        "gated", start=gate, transitions=[Transition(gate, gate, ~over), Transition(gate, End("end"), over)],
        signals=[Signal("stop", to=End("stopped", status=Status.CANCELLED))],
    )  # fmt: skip
    run = Run(gated, Walk(limit=limit), resources=rows)
    driver = threading.Thread(target=run.start)
    driver.start()
    assert gate.entered.acquire(timeout=30)
    try:
        yield run, gate, rows
    finally:
        for _ in range(limit + 1):
            gate.open.release()
        driver.join(30)
        assert not driver.is_alive()


@pytest.mark.parametrize("verb", ["close", "step", "resume", "goto", "fork", "snapshot", "edit", "rest", "with"])
def test_no_move_is_made_while_another_thread_drives(verb: str, tmp_path: Path) -> None:
    def leave(run: Run[Walk]) -> None:
        with run:
            pass

    moves: dict[str, Callable[[Run[Walk]], object]] = {
        "goto": lambda run: run.goto(0),
        "snapshot": lambda run: run.snapshot(tmp_path / "a.snap"),
        "edit": lambda run: run.edit_as_recorded("bonus", 1, live=True),
        "with": leave,
    }
    with driven() as (run, _, rows):
        with pytest.raises(IllegalMove, match=r"driven by another thread or from within itself"):
            moves.get(verb, lambda run: getattr(run, verb)())(run)
        assert rows.released == 0
        assert run.status is Status.RUNNING
    assert (run.status, run.context.bonus, rows.released) == (Status.DONE, 3, 1)
    run.close()
    assert rows.released == 1


def test_from_within_itself_a_run_is_not_moved_either() -> None:
    class Greedy(Phase[Walk, None]):
        def run(self, context: Walk) -> None:
            with pytest.raises(IllegalMove, match="from within itself"):
                run.close()

    run = Run(machine.insert(Greedy(), between=("note", "draw")), Walk(limit=20))
    assert run.start() is Status.DONE


@pytest.mark.parametrize("busy", ["saving", "syncing"])
def test_a_signal_sent_while_another_thread_saves_or_goes_back_is_taken(busy: str, tmp_path: Path) -> None:
    rows, at_work, go_on = Rows(), threading.Event(), threading.Event()
    run = Run(machine, Walk(limit=9), resources=rows)
    run.until(lambda run: run.step_count == 4)

    def wait() -> None:
        at_work.set()
        assert go_on.wait(30)

    setattr(rows, busy, wait)
    work = (lambda: run.snapshot(tmp_path / "a.snap")) if busy == "saving" else (lambda: run.goto(2))
    other = threading.Thread(target=work)
    other.start()
    assert at_work.wait(30)
    run.signal("stop")
    assert run.status is Status.PAUSED
    assert run.pending == ("stop",)
    go_on.set()
    other.join(30)
    assert run.status is Status.CANCELLED
    assert not run.pending


def test_waiting_never_refuses_a_move() -> None:
    """Who waits for a run does not hold it."""
    stop, run = threading.Event(), Run(machine, Walk(limit=10**9))

    def wait() -> None:
        while not stop.is_set():
            run.wait(1)

    waiters = [threading.Thread(target=wait) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    try:
        for _ in range(3000):
            run.step()
    finally:
        stop.set()
        for waiter in waiters:
            waiter.join(30)
    assert run.step_count == 3000


def test_wait_gives_up_in_time_and_wakes_at_the_end() -> None:
    with driven() as (run, gate, _):
        assert run.wait(0.01) is Status.RUNNING
        woken = threading.Event()
        waiter = threading.Thread(target=lambda: (run.wait(), woken.set()))
        waiter.start()
        run.pause()
        gate.open.release()
        assert woken.wait(30)
        waiter.join(30)
        assert run.status is Status.PAUSED


FORKED = """
import os, sys, threading
from statemachine_recorded import Walk, machine
from statemachine import IllegalMove, Phase, Run

inside, go_on = threading.Event(), threading.Event()

class Slow(Phase):
    def run(self, context):
        inside.set()
        go_on.wait(30)

run = Run(machine.insert(Slow(), between=("note", "draw")), Walk(limit=20))
resting = Run(machine, Walk(limit=2))
resting.step()
driver = threading.Thread(target=run.start)
driver.start()
assert inside.wait(30)
child = os.fork()
if child == 0:
    try:
        for move in (run.step, run.close, run.wait, lambda: run.signal("stop")):
            try:
                move()
            except IllegalMove as error:
                assert "forked" in str(error) and "spawn" in str(error), error
            else:
                os._exit(1)
        assert resting.resume() == "done"
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(2)
_, status = os.waitpid(child, 0)
go_on.set()
driver.join(30)
print(os.waitstatus_to_exitcode(status), run.status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_a_forked_child_refuses_what_a_thread_of_its_parent_drove() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, cwd=TESTS, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0 done\n", "")
