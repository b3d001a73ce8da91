"""What earlier versions of this package recorded opens, plays and verifies today, and is gone on with."""

from pathlib import Path

import pytest
from statemachine_recorded import Walk, machine

from statemachine import Journal, Run, Status, play, restore, verify
from statemachine.record.snapshot import load

SCHEMAS = sorted(
    path for path in (Path(__file__).parents[2] / "journals").glob("schema*") if (path / "walk.jsonl").exists()
)


def ready() -> Run[Walk]:
    return Run(machine, Walk(seed=3), request={"seed": 3, "limit": 20})


@pytest.mark.parametrize("folder", SCHEMAS, ids=lambda path: path.name)
def test_a_journal_of_then_is_one_of_today(folder: Path) -> None:
    journal, played = Journal.open(folder / "walk.jsonl"), ready()
    verdict = verify(journal, ready())
    assert verdict.verified, verdict.divergence and verdict.divergence.report()
    assert verdict.passed_over > 0
    assert play(journal, played) is None
    assert (played.status, [event.name for event in played.events]) == (Status.DONE, ["bonus", "skip"])
    for name in ("walk.snap", "walk-bare.snap"):
        run = ready()
        assert restore(load(folder / name), run) is None
        assert run.step_count == 20
        run.resume()
        assert run.context == played.context


def test_there_is_a_corpus_of_the_newest_schema() -> None:
    from statemachine.record.records import SCHEMA

    assert f"schema{SCHEMA}" in [path.name for path in SCHEMAS]
