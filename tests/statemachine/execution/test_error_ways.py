"""What a phase raises leads on where the table has a way for it, and fails the run where it has none."""

from itertools import product
from typing import Any

import pytest
from charging import (
    TABLE,
    BackOff,
    CardRefused,
    Charge,
    GatewayDown,
    Line,
    Purchase,
    charge,
    dropped,
    machine,
    paid,
    ready,
)
from hypothesis import given
from hypothesis import strategies as st
from interrupting import Interrupter
from logged import logged

from statemachine import (
    Guard,
    GuardError,
    IllegalMove,
    Machine,
    Phase,
    PhaseError,
    Raised,
    Resources,
    Run,
    Status,
    Transition,
)

INTERPRETERS = ("compiled", "transitions")
SCRIPTS = ("", "GatewayDown", "GatewayTimeout", "CardRefused")


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_it_is_tried_again_until_it_works(interpreter: Any) -> None:
    run = ready("GatewayDown", "GatewayTimeout", "", interpreter=interpreter)
    assert run.start() is Status.DONE
    assert run.context.log == [
        "GatewayDown: GatewayDown: attempt 0", "waited before 1", "GatewayDown: GatewayTimeout: attempt 1",
        "waited before 2", "paid 102",
    ]  # fmt: skip
    first = next(run.steps())
    assert (first.outcome, first.raised) == (None, Raised("GatewayDown", "GatewayDown", "attempt 0"))
    assert (first.target, first.guards) == ("back_off", {"tries_left": True})
    assert [step.raised.exception if step.raised else step.outcome for step in run.steps()] == [
        "GatewayDown", "waited before 1", "GatewayTimeout", "waited before 2", 102,
    ]  # fmt: skip


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_or_until_there_are_no_tries_left(interpreter: Any) -> None:
    run = ready(*["GatewayDown"] * 5, interpreter=interpreter)
    assert run.start() is Status.CANCELLED
    assert (run.context.attempts, run.step_count) == (3, 5)
    assert ready("CardRefused", interpreter=interpreter).start() is Status.CANCELLED


@given(st.lists(st.sampled_from(SCRIPTS), max_size=5))
def test_both_interpreters_agree(script: list[str]) -> None:
    runs = [ready(*script, interpreter=each) for each in INTERPRETERS]  # type: ignore[arg-type]
    for run in runs:
        run.start()
    assert list(runs[0].steps()) == list(runs[1].steps())
    assert runs[0].context.log == runs[1].context.log
    assert runs[0].status is runs[1].status


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_what_no_way_is_for_fails_the_run_as_ever(interpreter: Any) -> None:
    run = ready("GatewayDown", "ValueError", interpreter=interpreter)
    with pytest.raises(PhaseError, match="failed in phase 'charge' at step 2: ValueError: attempt 1"):
        run.start()
    assert run.status is Status.FAILED
    assert run.context.attempts == 1


def test_resources_are_synced_before_the_next_phase_runs() -> None:
    seen = []

    class Look(BackOff):
        def run(self, context: Purchase) -> str:
            seen.append([*context.line])
            return super().run(context)

    look = Look("back_off")
    table = [Transition(charge, look, way.when, way.raises) if way.target is TABLE[1].target else way for way in TABLE]
    run = ready("GatewayDown", of=Machine("purchase", charge, [*table[:4], Transition(look, charge)]))
    run.start()
    assert seen == [["synced"]]
    assert run.context.line == ["synced", "half", "whole"]


class Both(GatewayDown, CardRefused):
    pass


def test_an_exception_that_two_ways_are_for_fails_the_run() -> None:
    class Twice(Charge):
        def run(self, context: Purchase) -> int:
            raise Both("which?")

    twice = Twice("charge")
    table = [Transition(twice, way.target, way.when, way.raises) for way in TABLE[:4]]
    run = ready(of=Machine("purchase", twice, [*table, Transition(TABLE[4].source, twice)]))
    with pytest.raises(PhaseError) as failed:
        run.start()
    [note] = failed.value.__cause__.__notes__  # type: ignore[union-attr]
    assert note == "it is GatewayDown and CardRefused at once, so that no way of 'charge' could be taken"
    assert run.context.log == []


def of(phase: Phase[Any, Any], when: Any = None, raises: Any = GatewayDown) -> Machine[Any]:
    ways = [Transition(phase, dropped, when, raises=raises)]
    if when is not None:
        ways.append(Transition(phase, paid, ~when, raises=raises))
    return Machine("m", phase, [Transition(phase, paid), *ways])


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_only_run_is_caught(interpreter: Any) -> None:
    class Fails(Phase[list[str], int]):
        def __init__(self, where: str) -> None:
            super().__init__("fails")
            self.where = where

        def at(self, where: str) -> None:
            if self.where == where:
                raise GatewayDown(where)

        def run(self, context: list[str]) -> int:
            if self.where in ("apply_error", "guard"):
                raise GatewayDown("first")
            return 1

        def apply(self, context: list[str], outcome: int) -> None:
            context.append("changed")
            self.at("apply")

        def apply_error(self, context: list[str], raised: Raised) -> None:
            context.append("changed")
            self.at("apply_error")

    for where in ("apply", "apply_error", "guard"):
        phase = Fails(where)
        asked = Guard("asked", lambda context, phase=phase: phase.at("guard") or True)
        run = Run(of(phase, asked), [], interpreter=interpreter)
        with pytest.raises(PhaseError) as failed:
            run.start()
        cause = failed.value.__cause__
        assert isinstance(cause, GuardError if where == "guard" else GatewayDown)
        assert where in str(cause) or "asked" in str(cause)
        assert (run.status, run.context, run.step_count) == (Status.FAILED, [], 0)


def test_a_sync_that_fails_fails_the_run_and_it_can_be_tried_again() -> None:
    class Unsynced(Line):
        broken = True

        def sync(self, context: Purchase) -> None:
            if self.broken:
                raise OSError("no line")
            super().sync(context)

    lines = Unsynced()
    run = Run(machine, Purchase(["GatewayDown"]), resources=lines, keep=True)
    with pytest.raises(PhaseError, match="OSError: no line"):
        run.start()
    assert (run.status, run.step_count, run.context.log) == (Status.FAILED, 0, [])
    lines.broken = False
    assert run.resume() is Status.DONE


def test_going_back_forth_and_forking_from_between() -> None:
    run = ready("GatewayDown", "GatewayDown", "")
    run.start()
    steps, log = list(run.steps()), list(run.context.log)
    for number in range(run.step_count + 1):
        run.goto(number)
        assert run.context.log == log[:number]
        fork = run.fork()
        fork.resume() if not fork.status.ended else None
        assert list(fork.steps()) == steps
        run.goto(len(steps))
    run.goto(1)
    run.context.script[:] = ["GatewayDown", "CardRefused"]
    assert run.resume() is Status.CANCELLED
    assert len(list(run.steps())) == 3


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_two_phases_may_list_different_classes_of_one_name(interpreter: Any) -> None:
    class Raises(Phase[list[str], None]):
        def __init__(self, name: str, kind: type[Exception]) -> None:
            super().__init__(name)
            self.kind = kind

        def run(self, context: list[str]) -> None:
            raise self.kind

        def apply_error(self, context: list[str], raised: Raised) -> None:
            context.append(f"{self.name} {raised}")

    first, second = (Raises(name, type("Down", (Exception,), {})) for name in ("first", "second"))
    two = Machine("two", first, [
        Transition(first, dropped), Transition(first, second, raises=first.kind),
        Transition(second, dropped), Transition(second, paid, raises=second.kind),
    ])  # fmt: skip
    run = Run(two, [], interpreter=interpreter)
    assert run.start() is Status.DONE
    assert run.context == ["first Down", "second Down"]


def test_taking_what_was_raised() -> None:
    run = ready()
    step = run.take(Raised("GatewayDown", "GatewayTimeout", "told"))
    assert (step.target, step.raised) == ("back_off", Raised("GatewayDown", "GatewayTimeout", "told"))
    before = list(run.context.log)
    with pytest.raises(ValueError, match="'back_off' has no way on GatewayDown: expected one of none"):
        run.take(Raised("GatewayDown", "GatewayDown", ""))
    run.take("waited")
    with pytest.raises(ValueError, match="'charge' has no way on ValueError: expected one of GatewayDown, CardRefused"):
        run.take(Raised("ValueError", "ValueError", ""))
    assert (run.status, run.step_count) == (Status.PAUSED, 2)
    assert run.context.log == [*before, "waited"]


def test_an_outcome_that_looks_like_it_is_an_outcome() -> None:
    class Odd(Phase[list[Any], Any]):
        def run(self, context: list[Any]) -> Raised:
            return Raised("GatewayDown", "GatewayDown", "it only looks so")

        def apply(self, context: list[Any], outcome: Any) -> None:
            context.append(outcome)

    run = Run(of(Odd()), [], keep=True)
    run.start()
    assert run.phase is paid
    [step] = run.steps()
    assert (step.raised, step.outcome) == (None, Raised("GatewayDown", "GatewayDown", "it only looks so"))
    run.goto(0)
    run.goto(1)
    assert run.context == [step.outcome]


def test_a_long_or_broken_message_is_cut_and_kept_printable() -> None:
    class Mute(GatewayDown):
        def __str__(self) -> str:
            raise ValueError

    class Fails(Phase[Any, int]):
        def __init__(self, error: Exception) -> None:
            super().__init__("fails")
            self.error = error

        def run(self, context: Any) -> int:
            raise self.error

    for error, message in (
        (GatewayDown("x" * 6000), "x" * 5000),
        (GatewayDown("\ud800"), "\\ud800"),
        (Mute(), "(its text raised ValueError)"),
    ):
        run = Run(of(Fails(error)), [])
        run.start()
        assert next(run.steps()).raised == Raised("GatewayDown", type(error).__name__, message)


def test_it_is_logged() -> None:
    with logged() as logs:
        ready("GatewayDown").start()
    [caught] = [entry for entry in logs if entry["event"] == "run.caught"]
    assert (caught["phase"], caught["to"], caught["step"]) == ("charge", "back_off", 0)
    assert (caught["error"], caught["message"], caught["log_level"]) == ("GatewayDown", "attempt 0", "warning")


@pytest.mark.slow
@pytest.mark.parametrize("second", [0, 1, 3])
def test_an_interrupt_anywhere_in_a_caught_step_leaves_a_run_that_goes_on_rightly(second: int) -> None:
    whole = ready("GatewayDown", "GatewayDown", "")
    whole.start()
    at = 0
    while True:
        run = ready("GatewayDown", "GatewayDown", "")
        interrupter = Interrupter(at, second)
        try:
            with interrupter:
                run.step()
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        run.wait(1)
        if run.status is not Status.READY:
            run.goto(run.step_count)
        assert run.context.log == whole.context.log[: run.step_count]
        assert (run.phase_name, run.step_count) in (("charge", 0), ("back_off", 1))
        if run.status is Status.READY:
            run.start()
        else:
            run.resume()
        assert list(run.steps()) == list(whole.steps())
        assert run.context.log == whole.context.log
        at += 1
    assert at > 50


def test_a_run_that_waits_takes_no_exception() -> None:
    run = ready("")
    with pytest.raises(IllegalMove, match="not waiting"):
        run.answer(Raised("GatewayDown", "GatewayDown", ""))


def test_where_nothing_stands_behind_a_context_nothing_is_synced() -> None:
    for script in product(("GatewayDown", ""), repeat=2):
        run = Run(machine, Purchase([*script]), resources=Resources())
        assert run.start() is Status.DONE
