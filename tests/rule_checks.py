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


def hold_and_see(rules: type[MachineRules], *kinds: str, options: settings = BRIEF) -> None:
    """The rules hold, and nothing of these kinds is left unseen: unless the first examples show it, others do.

    Which examples come first changes with whatever else is loaded: Hypothesis takes constants of its modules.
    """
    hold(rules, options)
    for _ in range(5):
        if not rules.coverage.never.keys() & set(kinds or rules.coverage.never):
            return
        hold(rules, settings(options, derandomize=False))
    raise AssertionError(f"never seen: {rules.coverage.never}")


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
