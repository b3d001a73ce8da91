"""A record is walked like the run that it was."""

from pathlib import Path
from typing import Any

import pytest
from debugger_lines import PARAMS, PROMPT, said
from forging import forged

from phases import Generator
from phases.debugger.generation import GenerationSession
from phases.debugger.generation_view import view_of
from statemachine import PhaseError

JOURNALS = Path(__file__).parents[2] / "journals" / "schema1"


def test_a_record_walks_like_the_run_it_was(session: GenerationSession, generator: Generator, journal: Path) -> None:
    session.step(2)
    session.force(30)
    record = GenerationSession.recorded(journal)
    assert said(record, "step 2") == said(session, "goto 0", "step 2")[1:]
    session.force(30)
    for line in ("next 2", "break if length == 4", "run", "delete 1", "break phase decode", "run", "delete 2"):
        live, played = said(session, line), said(record, line)
        assert len(live) == len(played)
        assert session.run.step_count == record.run.step_count
        assert session.run.context.output_ids == record.run.context.output_ids
        assert (session.progress(), session.tokens) == (record.progress(), record.tokens)
    assert said(record, "next 99")[-2] == "stopped: the end of the record (done)"
    assert "error: the end of the record (done): go back" in said(record, "step")[0]
    assert said(record, "text") == said(session, "next 99", "text")[-3:]  # for the model's folder is at hand
    assert any("edit force" in line for line in said(record, "timeline 99"))


def test_a_record_shows_what_digests_hold(journal: Path) -> None:
    record = GenerationSession.recorded(journal)
    shown = said(record, "goto 5", "candidates")
    assert shown[1] == "token 2, to be drawn"
    assert len(shown) == 6
    assert all("logit" in line for line in shown[2:])
    assert said(record, "buffers")[0] == "buffers: not recorded"
    assert any(line.startswith("kv 0") for line in said(record, "buffers"))
    for line in ("force 3", "append x", "set temperature 0", "fork", "save x", "load x"):
        assert said(record, line)[0].startswith("error: a record is only walked, so one cannot ")
    assert said(GenerationSession.recorded(next(iter(sorted(JOURNALS.glob("*.jsonl"))))), "next", "candidates")[-1]


@pytest.mark.parametrize("path", sorted(JOURNALS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_record_of_the_corpus_can_be_walked(path: Path) -> None:
    record = GenerationSession.recorded(path)
    record.run_on()
    end = record.run.context.output_ids
    assert view_of(record).notice == ""
    for _ in range(4):
        record.back()
    while record.run.step_count < record.run.recorded_steps:
        record.step()
    assert record.run.context.output_ids == end


def test_a_record_of_a_failure_and_a_torn_one_say_so(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Path
) -> None:
    path = tmp_path / "failed.jsonl"
    run = generator.start(PROMPT, PARAMS, journal=path)
    run.step()
    monkeypatch.setattr(generator.engine, "prefill", lambda rows: 1 / 0)
    with pytest.raises(PhaseError):
        run.resume()
    record = GenerationSession.recorded(path)
    assert "the recorded run failed in prefill: ZeroDivisionError" in said(record, "run", "where")[-1]
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(journal.read_bytes()[:-90])
    record = GenerationSession.recorded(torn)
    record.run_on()
    assert "was never finished" in view_of(record).notice


@pytest.mark.parametrize("token", [70_000, 2**31 - 1])
def test_tokens_that_no_tokenizer_knows_are_shown_by_their_ids(journal: Path, tmp_path: Path, token: int) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        for record in records:
            if record["type"] == "s" and record["p"] in ("sample", "check_stop") and record["n"] > 8:
                record["o"] = [token]

    record = GenerationSession.recorded(forged(journal, tmp_path / "forged.jsonl", change))
    assert record.has_text
    for line in ("break if text contains 'e' and token == 'e'", "step 12", "text", "timeline", "candidates", "run"):
        said(record, line)
        view_of(record)
    assert str(token) in "".join(said(record, "text"))
    assert str(token) in "".join(said(record, "timeline 50"))
