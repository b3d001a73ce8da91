"""What is recorded is walked again by its outcomes, or run again and compared."""

from pathlib import Path

import pytest
from statemachine_recorded import Draw, Walk, fresh, lines, machine, record, walk

from statemachine import Journal, JournalWriter, Phase, PhaseError, Run, Status, play, verify
from statemachine.record.records import EndRecord, ErrorRecord


def test_signals_edits_errors_and_journeys_stand_where_they_took_effect(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=8), journal=JournalWriter(path), keep=True, request={"seed": 0, "limit": 8})
    run.edit("bonus", amount=3)
    run.until(lambda run: run.step_count == 4)
    with pytest.raises(ValueError, match="amount is a positive number, not -1"):
        run.edit("bonus", amount=-1)
    run.edit("bonus", amount=1)
    run.resume()
    run.goto(6)
    run.edit("bonus", amount=100)
    run.resume()
    run.close()
    kinds = [value["type"] for value in lines(path)]
    assert kinds.count("goto") == 1
    assert kinds.count("end") == 2
    journal = Journal.open(path)
    replayed, played = fresh(path), fresh(path)
    assert verify(journal, replayed).verified
    assert play(journal, played) is None
    assert replayed.context == played.context == run.context
    assert list(played.steps()) == list(run.steps())
    assert [step.elapsed_ns for step in played.steps()] == [step.elapsed_ns for step in run.steps()]
    assert played.events == run.events


def test_a_failed_run_is_recorded_and_fails_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(PhaseError):
        record(path, limit=-1, seed="x" * 3)  # type: ignore[arg-type]
    *_, error, end = Journal.open(path).records()
    assert isinstance(error, ErrorRecord)
    assert (error.n, error.p, error.exception) == (0, "draw", "TypeError")
    assert end == EndRecord(n=0, status="failed")
    assert verify(Journal.open(path), fresh(path)).verified


def test_a_failure_that_does_not_come_again_is_a_divergence(tmp_path: Path) -> None:
    mended = False

    class Moody(Phase[Walk, None]):
        def run(self, context: Walk) -> None:
            if not mended:
                raise OSError("not today")

    moody = machine.insert(Moody(), between=("note", "draw"))
    with pytest.raises(PhaseError):
        Run(moody, Walk(), journal=JournalWriter(tmp_path / "a.jsonl")).start()
    mended = True
    verdict = verify(Journal.open(tmp_path / "a.jsonl"), Run(moody, Walk()))
    assert verdict.divergence is not None
    assert not verdict.verified
    assert (verdict.divergence.phase, verdict.divergence.field) == ("moody", "error")
    assert (verdict.divergence.recorded, verdict.divergence.replayed) == ("OSError: not today", "nothing")


def test_an_interrupt_is_no_end_of_a_run_and_does_not_escape_a_replay(tmp_path: Path) -> None:
    class Interrupted(Draw):
        def run(self, context: Walk) -> int:
            if len(context.drawn) == 3:
                raise KeyboardInterrupt
            return super().run(context)

    path, odd = tmp_path / "a.jsonl", walk(Interrupted("draw"))
    with pytest.raises(KeyboardInterrupt):
        Run(odd, Walk(), journal=JournalWriter(path)).start()
    assert [line["type"] for line in lines(path)[-2:]] == ["error", "end"]
    for again in (Run(odd, Walk()), Run(machine, Walk())):  # it came from the phase, or from outside
        verdict = verify(Journal.open(path), again)
        assert verdict.divergence is None
        assert (verdict.verified, verdict.ended, verdict.interrupted) == (False, None, "KeyboardInterrupt")
        assert verdict.steps == again.step_count >= 3


def test_a_play_rests_at_the_step_that_was_asked_for(tmp_path: Path) -> None:
    run = record(tmp_path / "a.jsonl")
    for until in (0, 1, 7, run.step_count):
        played = fresh(tmp_path / "a.jsonl")
        assert play(Journal.open(tmp_path / "a.jsonl"), played, until=until) is None
        assert played.step_count == until
        assert played.status is (Status.DONE if until == run.step_count else Status.PAUSED)
