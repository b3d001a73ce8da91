"""What the rules found in the state machine itself stays mended."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bag import Bag, rules_of
from statemachine_recorded import Walk
from statemachine_recorded import machine as walk

from statemachine import Edit, Journal, JournalWriter, Run
from statemachine.record.records import StepRecord
from statemachine.record.replay import verify
from statemachine.record.snapshot import load, restore


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "a.jsonl"


def recorded(path: Path, **options: Any) -> Run[Walk]:
    return Run(walk, Walk(limit=20), journal=JournalWriter(path), keep=True, **options)


def test_going_back_from_within_a_loop_over_the_run_leaves_a_whole_journal(path: Path) -> None:
    run = recorded(path)
    run.step()
    for step in run:
        if step.number == 12 and not run.events:
            run.back(3)
            run.edit("bonus", amount=1)
    assert verify(Journal.open(path), Run(walk, Walk(limit=20))).verified


def test_digests_of_a_run_that_went_back_verify(path: Path) -> None:
    run = recorded(path, digest_every=2)
    run.until(lambda run: run.step_count == 4)
    run.back(1)
    run.resume()
    assert verify(Journal.open(path), Run(walk, Walk(limit=20))).verified


def test_going_nowhere_leaves_a_ready_run_ready(path: Path) -> None:
    run = recorded(path)
    run.goto(0)
    assert run.start() == "done"


def test_a_snapshot_from_before_the_first_step_is_restored_paused(path: Path, tmp_path: Path) -> None:
    run = recorded(path)
    run.snapshot(tmp_path / "a.snapshot")
    other = Run(walk, Walk(limit=20))
    assert restore(load(tmp_path / "a.snapshot"), other) is None
    assert other.resume() == "done"
    assert run.start() == "done"
    assert other.context == run.context


def test_an_edit_that_fails_half_way_is_undone() -> None:
    class Half(Edit[Bag, int]):
        def run(self, context: Bag, **arguments: Any) -> int:
            return 7

        def apply(self, context: Bag, outcome: int) -> None:
            context.seed = outcome
            raise OSError("disk")

    run = Run(rules_of(known=[Half("half")]).given.machine, Bag(seed=1))
    run.step()
    with pytest.raises(OSError, match="disk"):
        run.edit("half")
    assert (run.context.seed, run.context.count, run.events) == (1, 1, [])
    run.resume()


def test_a_restored_run_that_rests_has_all_its_past_in_its_journal(path: Path, tmp_path: Path) -> None:
    run = Run(walk, Walk(limit=20))
    run.until(lambda run: run.step_count == 7)
    run.snapshot(tmp_path / "a.snapshot")
    restored = recorded(path)
    assert restore(load(tmp_path / "a.snapshot"), restored) is None
    steps = [record for record in Journal.open(path).records() if isinstance(record, StepRecord)]
    assert len(steps) == 7
