"""A run that must end and goes on for ever is found, and the message says where it goes round."""

from dataclasses import dataclass
from time import process_time
from typing import Any

import pytest
from bag import Bag, Sound, rules_of
from hypothesis import settings
from hypothesis import strategies as st
from rule_checks import BRIEF, caught, hold

from statemachine import End, Machine, Phase, Signal, Transition, Wait, guard
from statemachine.testing import machine_rules, run_rules

pytestmark = pytest.mark.slow


@dataclass
class Job:
    tries: int
    left: int = 3
    approved: bool = False


class Try(Phase[Job, int]):
    def run(self, context: Job) -> int:
        return context.tries + 1

    def apply(self, context: Job, outcome: int) -> None:
        context.tries = outcome


class Counted(Try):
    def apply(self, context: Job, outcome: int) -> None:
        context.tries, context.left = outcome, max(0, context.left - 1)


class Approval(Wait[Job, bool]):
    def apply(self, context: Job, outcome: bool) -> None:
        context.approved = outcome


@guard
def spent(context: Job) -> bool:
    return context.left == 0


def retrying(attempt: Phase[Job, int]) -> Machine[Job]:
    rest, end = Phase[Job, None]("rest"), End[Job]("done")
    table = [Transition(attempt, rest, ~spent), Transition(attempt, end, spent), Transition(rest, attempt)]
    return Machine("job", attempt, table, signals=[Signal("give up", to=end)])


JOBS = st.builds(Job, st.integers(0, 2))


def test_a_run_that_only_a_signal_would_end_is_found_and_told() -> None:
    message = caught(machine_rules(retrying(Try("try")), JOBS, must_end=True, max_steps=20))
    first, *ways, last = message.splitlines()
    assert first == (
        "a run that must end goes on for ever: 20 steps, without a signal or an edit, led to no end, and the last 10 "
        "of them go round"
    )
    assert sorted(ways) == ["  rest -> try", "  try -> rest when ~spent"]
    assert last == (
        "where left (3), approved (False) does not change: let what these guards ask for come true, or give a greater "
        "max_steps than 20 to a run that needs it"
    )


def test_it_is_not_asked_for_unless_it_is_asked_for() -> None:
    hold(machine_rules(retrying(Try("try")), JOBS, max_steps=20), settings(BRIEF, max_examples=30))


def test_runs_that_end_or_wait_pass() -> None:
    hold(machine_rules(retrying(Counted("try")), JOBS, must_end=True, max_steps=20), settings(BRIEF, max_examples=50))
    approval, end = Approval(), End[Job]("done")
    approved = guard(lambda context: context.approved)
    approved.name = "approved"
    table = [Transition(approval, end, approved), Transition(approval, approval, ~approved)]
    hold(machine_rules(Machine("ask", approval, table), JOBS, must_end=True), settings(BRIEF, max_examples=50))


def test_a_long_run_needs_more_steps() -> None:
    contexts = st.builds(Job, st.just(0), st.just(15))
    assert "give a greater max_steps than 20 " in caught(
        machine_rules(retrying(Counted("try")), contexts, must_end=True, max_steps=20)
    )
    hold(
        machine_rules(retrying(Counted("try")), contexts, must_end=True, max_steps=40),
        settings(BRIEF, max_examples=30),
    )


class Late(Sound):
    """Breaks a rule when it has drawn some numbers."""

    def run(self, context: Bag) -> Any:
        if context.count == 6:
            context.seed += 1
        return super().run(context)


class LateRaise(Sound):
    def run(self, context: Bag) -> int:
        if context.count == 6:
            raise OSError("no more")
        return super().run(context)


class LateOutcome(Sound):
    def run(self, context: Bag) -> Any:
        return float("nan") if context.count == 6 else super().run(context)


@pytest.mark.parametrize("phase", [Late, LateRaise, LateOutcome])
def test_what_is_broken_is_found_and_made_small_in_less_than_ten_seconds(phase: type[Sound]) -> None:
    """Of this process's own time, with the settings that a user has."""
    rules, began = rules_of(phase()), process_time()
    with pytest.raises(Exception, match=r"phase 'draw'"):
        run_rules(rules, settings(rules.TestCase.settings, database=None))
    assert process_time() - began < 10


def test_of_a_livelock_too() -> None:
    rules, began = machine_rules(retrying(Try("try")), JOBS, must_end=True), process_time()
    with pytest.raises(Exception, match="goes on for ever"):
        run_rules(rules, settings(rules.TestCase.settings, database=None))
    assert process_time() - began < 10
