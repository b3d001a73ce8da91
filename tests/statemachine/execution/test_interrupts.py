"""Every move is all or nothing: an interrupt anywhere, and a second one on top, leave a run that goes on rightly."""

from collections.abc import Callable
from typing import Any

import pytest
from interrupting import Interrupter
from statemachine_recorded import Walk, draw, machine

from statemachine import IllegalMove, Resources, Run, Status

pytestmark = pytest.mark.slow

LIMIT = 6


def fresh(**options: Any) -> Run[Walk]:
    return Run(machine, Walk(seed=3, limit=LIMIT), keep=True, **options)


def finished() -> Run[Walk]:
    run = fresh()
    run.start()
    return run


WHOLE = finished()


def places() -> dict[int, Walk]:
    """The context after any number of steps, of a run that nothing interrupts and nobody edits."""
    found, run = {}, fresh()
    found[0] = Walk(seed=3, limit=LIMIT)
    while not run.status.ended:
        run.step()
        context = run.context
        found[run.step_count] = Walk(context.seed, context.limit, list(context.drawn), context.bonus)
    return found


CONTEXTS = places()


def halfway() -> Run[Walk]:
    run = fresh()
    run.until(lambda run: run.step_count == 5)
    return run


def rewound() -> Run[Walk]:
    run = halfway()
    run.goto(2)
    return run


ITERATORS = []  # kept, so that they are not closed while they are traced


def iterate(run: Run[Walk]) -> None:
    ITERATORS.append(iter(run))
    next(ITERATORS[-1])
    next(ITERATORS[-1])


def each(run: Run[Walk]) -> None:
    ITERATORS.append(run.each(draw))
    next(ITERATORS[-1])
    next(ITERATORS[-1])


MOVES: dict[str, tuple[Callable[[], Run[Walk]], Callable[[Run[Walk]], object]]] = {
    "goto": (halfway, lambda run: run.goto(1)),
    "goto forward": (rewound, lambda run: run.goto(5)),
    "back": (finished, lambda run: run.back(3)),
    "fork": (halfway, lambda run: run.fork(3)),
    "start": (fresh, lambda run: run.start()),
    "step": (halfway, lambda run: run.step()),
    "step from the past": (rewound, lambda run: run.step()),
    "until": (halfway, lambda run: run.until(lambda run: run.step_count == 7)),
    "iterate": (halfway, iterate),
    "each": (halfway, each),
    "take": (halfway, lambda run: run.take(WHOLE.timeline.outcomes[5])),
    "rest": (fresh, lambda run: run.rest()),
    "pause": (halfway, lambda run: run.pause()),
}


@pytest.mark.parametrize("second", [0, 1, 3], ids=["once", "twice", "four times"])
@pytest.mark.parametrize("move", MOVES)
def test_an_interrupt_anywhere_in_a_move_leaves_a_run_that_goes_on_rightly(move: str, second: int) -> None:
    prepare, work = MOVES[move]
    at = 0
    while True:
        run = prepare()
        interrupter = Interrupter(at, second)
        try:
            with interrupter:
                work(run)
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        run.wait(1)
        run.goto(run.step_count)  # any move mends what was left
        where = f"{move}, interrupted at its event {at}"
        assert run.status is not Status.RUNNING, where
        assert run.context == CONTEXTS[run.step_count], where
        assert run.timeline.count == len(list(run.steps(future=True))), where
        run.goto(0)
        assert run.context == CONTEXTS[0], where
        if run.status is not Status.FAILED:  # in its very first step
            run.start() if run.status is Status.READY else run.resume()
            assert (run.status, run.context) == (Status.DONE, WHOLE.context), where
            assert list(run.steps()) == list(WHOLE.steps()), where
        at += 1
    assert at > (2 if move == "pause" else 10)


@pytest.mark.parametrize("kind", ["edit", "signal"])
@pytest.mark.parametrize("prepare", [halfway, rewound])
def test_an_interrupted_edit_or_signal_took_place_or_did_not(prepare: Callable[[], Run[Walk]], kind: str) -> None:
    at = 0
    while True:
        run = prepare()
        number = run.step_count
        interrupter = Interrupter(at, 1)
        try:
            with interrupter:
                run.edit("bonus", amount=7) if kind == "edit" else run.signal("stop")
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        run.goto(run.step_count)  # any move mends, and takes a signal that is still on its way
        assert run.wait(1) is not Status.RUNNING
        if kind == "edit":
            took_place = bool(run.events)
            assert run.context.bonus == CONTEXTS[number].bonus + 7 * took_place
            assert run.recorded_steps == (number if took_place or prepare is halfway else 5)
        else:
            assert [event.name for event in run.events] in ([], ["stop"])
            assert (run.status is Status.CANCELLED) == bool(run.events)
            assert not run.pending
        at += 1
    assert at > 10


def test_rows_are_given_back_once_whatever_interrupts_the_end() -> None:
    class Rows(Resources[Walk]):
        def __init__(self) -> None:
            self.released = 0

        def release(self, context: Walk) -> None:
            self.released += 1

    at = 0
    while True:
        rows = Rows()
        run = Run(machine, Walk(seed=3, limit=2), resources=rows)
        interrupter = Interrupter(at)
        try:
            with interrupter:
                run.start()
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        run.close()
        assert 1 <= rows.released <= 2
        run.close()
        assert 1 <= rows.released <= 2
        at += 1


def test_what_release_raises_is_told_and_changes_nothing() -> None:
    class Stuck(Resources[Walk]):
        def release(self, context: Walk) -> None:
            raise OSError("the device is gone")

    run = Run(machine, Walk(limit=2), resources=Stuck())
    with pytest.warns(RuntimeWarning, match="could not give its resources back: OSError: the device is gone"):
        assert run.start() is Status.DONE
    with pytest.raises(IllegalMove, match="it is done"):
        run.resume()
