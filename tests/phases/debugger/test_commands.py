"""The line mode: a command in, its answer out."""

from pathlib import Path

import pytest
from debugger_lines import PARAMS, PROMPT, said

from phases import Generator
from phases.debugger.generation import GenerationSession


def test_a_transcript(session: GenerationSession) -> None:
    answer = said(session, "step 3", "where", "next", "back 2", "goto 0", "run", "step", "back", "where")
    assert answer[0].startswith("    0 tokenize -> prefill")
    assert answer[2].startswith("    2 sample -> decode  ~nothing_left  token ")
    assert answer[3] == "run 1  paused  at decode  step 3 of 3  tokens 0"
    assert answer[4].startswith("token 1: ")
    assert answer[5:7] == [
        "run 1  paused  at sample  step 5 of 5  tokens 1",
        "run 1  paused  at decode  step 3 of 5  tokens 0",
    ]
    assert answer[7] == "run 1  paused  at tokenize  step 0 of 5  tokens 0"
    assert [line.split(":")[0] for line in answer[8:16]] == [f"token {number}" for number in range(1, 9)]
    assert answer[16:18] == ["stopped: done", "run 1  done  at done  step 26 of 26  tokens 8"]
    assert answer[18] == "error: the run has ended (done): go back to go on from there"
    assert answer[19] == "run 1  paused  at detokenize  step 25 of 26  tokens 8"


MISTAKES = [
    ("dance", "expected a command, not 'dance'; commands: step, next"), ("step many", "expected step [N], not 'many'"),
    ("step 0", "a count of at least 1"), ("goto", "expected goto STEP"), ("goto 99", "99 lies past the last recorded"),
    ("back", "-1 lies past the start"), ("break", "expected break phase NAME"), ("break dance x", "break guard NAME"),
    ("break phase x", "expected a phase, not 'x'; phases: tokenize"), ("break guard x", "expected a guard, not 'x'"),
    ("break if top1", "expected a comparison"), ("delete 4", "there is no breakpoint 4; breakpoints: none"),
    ("force", "expected force TOKEN"), ("force -1", "token ids start at 0"), ("force 999999", "expected token ids"),
    ('force "', "quotes do not match"), ("force ''", "comes to no token"), ("set", "expected set NAME NUMBER"),
    ("set colour 3", "expected one of temperature"), ("set temperature hot", "expected set temperature NUMBER"),
    ("set temperature -1", "temperature is a finite number"), ("append", "expected append"),
    ("fork 9", "there is no place 9"), ("switch 9", "there is no run 9; runs: 1"), ("close", "this is the only run"),
    ("row 3", "expected a row from 0 to 0"), ("save", "expected save FILE"), ("load nowhere", "cannot be read"),
    ("candidates", "no logits yet"), ("run 3", "expected run alone"), ("save /dev/null/x", "error: "),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(session: GenerationSession, line: str, message: str) -> None:
    answer = said(session, line, "where")
    assert len(answer) == 2
    assert answer[0].startswith("error: ")
    assert message in answer[0]
    assert answer[1] == "run 1  ready  at tokenize  step 0 of 0  tokens 0"


def test_force_append_and_settings(session: GenerationSession, generator: Generator) -> None:
    ids = generator.tokenizer.encode_continuation(" lazy dog")
    answer = said(
        session, "next 2", 'force " lazy dog"', "candidates 1", f"next {len(ids)}", "append the", "set top-k 1"
    )
    assert any(line.startswith("forced next: ") for line in answer)
    assert f"token 3, forced: {ids[0]} {generator.tokenizer.decode([ids[0]])!r}" in answer
    assert session.run.context.output_ids[0][2 : 2 + len(ids)] == list(ids)
    assert session.run.context.request.requests[0].params.top_k == 1
    assert "top_k is 1 from here on" in said(session, "set top_k 1")
    assert any("edit force" in line for line in said(session, "timeline 50"))
    assert said(session, "force 7", "run")[0].startswith("forced next: 7")


def test_forks_have_futures_of_their_own(session: GenerationSession) -> None:
    answer = said(
        session, "next 3", "fork 5", "force 30", "next", "runs", "switch 1", "text", "switch", "close", "runs"
    )
    first, second = (line for line in answer if line.startswith("* run"))
    assert first == "* run 2  paused  step 8 of 8  fork of 1 at step 5"
    assert second == "* run 1  paused  step 11 of 11"
    assert "closed run 2" in answer
    labels = [row.owner for row in session.cache()]
    assert labels.count("") == 3
    assert said(session, "fork", "fork", "fork", "fork")[-1].startswith("error: 1 rows were asked for, 0 of 4 are free")


def test_save_and_load(session: GenerationSession, tmp_path: Path) -> None:
    path = tmp_path / "a run.snap"
    answer = said(session, "next 3", f'save "{path}"', f"save {path}", "run", "text", f"load {path}", "run", "text")
    assert f"saved to {path}" in answer
    assert not [line for line in answer if line.startswith("error")]
    one, other = (line for line in answer if line.startswith("output: "))
    assert one == other
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    assert said(session, "goto 4", f"save {mine}")[-1] == f"error: {mine} exists already; choose another name"
    assert mine.read_text() == "precious"
    assert said(session, f"load {mine}")[0].startswith(f"error: {mine} is no snapshot")
    assert said(session, "run", "save x")[-1] == "error: the run has ended (done): go back a step to save it"


def test_a_failed_phase_is_shown_and_one_can_go_back(
    session: GenerationSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.step(3)
    engine = session.run.context.bound_engine
    monkeypatch.setattr(engine, "decode", lambda rows: 1 / 0)
    assert said(session, "run") == [
        "stopped: failed in decode: ZeroDivisionError: division by zero",
        "run 1  failed  at decode  step 3 of 3  tokens 0",
    ]
    assert said(session, "where")[1] == "ZeroDivisionError: division by zero"
    whole = said(session, "error")
    assert whole[0] == "phase 'decode' failed at step 3"
    assert any("1 / 0" in line for line in whole)
    assert whole[-1] == "ZeroDivisionError: division by zero"
    assert said(session, "step")[0].startswith("stopped: failed in decode")  # it was tried again
    monkeypatch.undo()
    assert said(session, "step")[0].startswith("    3 decode -> check_stop")
    assert said(session, "run")[-1] == "run 1  done  at done  step 26 of 26  tokens 8"
    assert said(session, "where") == ["run 1  done  at done  step 26 of 26  tokens 8"]


def test_batches_show_one_row_at_a_time(generator: Generator) -> None:
    session = GenerationSession.live(generator, generator.start([PROMPT, "x"], PARAMS, keep=True))
    answer = said(session, "next 2", "text", "row 1", "text", "candidates 2")
    assert "run 1  paused  at sample  step 8 of 8  tokens 2  row 1" in answer
    assert [line for line in answer if line.startswith("prompt")] != []
    assert [row.owner for row in session.cache()][:2] == ["run 1 row 0", "run 1 row 1"]
    session.close()
