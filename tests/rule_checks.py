"""Runs the rules of statemachine.testing, briefly, and gives what they caught."""

import pytest
from hypothesis import Phase as Stage
from hypothesis import settings

from statemachine.testing import BrokenRule, MachineRules, run_rules

BRIEF = settings(
    max_examples=100, stateful_step_count=10, deadline=None, derandomize=True, database=None,
    phases=[Stage.generate], report_multiple_bugs=False,
)  # fmt: skip


def hold(rules: type[MachineRules], options: settings = BRIEF) -> None:
    run_rules(rules, options)


def caught(rules: type[MachineRules]) -> str:
    """The message of the rule that was broken."""
    with pytest.raises((BrokenRule, BaseExceptionGroup)) as failure:
        hold(rules)
    (error,) = broken(failure.value)
    return str(error)


def broken(error: BaseException) -> list[BrokenRule]:
    """The broken rules in an error: Hypothesis puts what does not happen every time into a group."""
    if isinstance(error, BaseExceptionGroup):
        return [found for each in error.exceptions for found in broken(each)][:1]
    return [error] if isinstance(error, BrokenRule) else []
