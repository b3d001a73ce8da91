"""What journals, runs and rules have seen of a machine."""

from pathlib import Path

import pytest
from bag import rules_of
from hypothesis import settings
from rule_checks import BRIEF, hold_and_see
from statemachine_recorded import machine as walk
from statemachine_recorded import record

from statemachine import Journal
from statemachine.testing import coverage


def test_coverage_of_journals_and_runs_names_what_was_never_seen(tmp_path: Path) -> None:
    runs = [record(tmp_path / f"{seed}.jsonl", seed=seed, limit=3) for seed in range(2)]
    journals = [Journal.open(tmp_path / f"{seed}.jsonl") for seed in range(2)]
    found = coverage(journals, walk)
    assert found == coverage(runs, walk)
    assert sum(found.transitions.values()) == sum(run.step_count for run in runs)
    assert found.never["signals"] == ["stop", "skip"]
    assert found.never["edits"] == ["bonus"]
    assert "signals: 0 of 2 seen\n  never: stop" in str(found)
    nothing = coverage([], walk)
    assert nothing.never["transitions"] == [str(transition) for transition in walk.transitions]
    assert "draw: odd & ~far_enough" in nothing.never["rows"]
    with pytest.raises(ValueError, match="of another machine"):
        coverage(runs[0], rules_of().given.machine)


def test_coverage_is_gathered_while_rules_run() -> None:
    rules = rules_of()
    assert len(rules.coverage.never["transitions"]) == 4
    hold_and_see(rules, "transitions", "signals", options=settings(BRIEF, max_examples=200))
