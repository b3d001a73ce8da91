"""The debugger: its conditions, its moves, its line mode and its full screen."""

import asyncio
import io
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate import PATIENCE, Gate
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu.sampling import candidates
from phases import Generation, Generator, RowRequest, SamplingParams, machine
from phases.debugger.commands import execute
from phases.debugger.conditions import Condition, ConditionError
from phases.debugger.distribution import Distribution, NoDistribution
from phases.debugger.drawing import draw
from phases.debugger.generation import GenerationSession
from phases.debugger.panels import bar_of, fitted, percent
from phases.debugger.plain import converse
from phases.debugger.screen import Asked, DebuggerApp, Pages, picture
from phases.debugger.view import View, glance
from statemachine import Phase, PhaseError

JOURNALS = Path(__file__).parents[1] / "journals"
PARAMS = SamplingParams(temperature=1.1, top_k=20, top_p=0.9, min_p=0.02, seed=5, max_new_tokens=8, stop_token_ids=())
PROMPT = "the quick fox"


@pytest.fixture
def session(generator: Generator) -> Iterator[GenerationSession]:
    made = GenerationSession.live(generator, generator.start(PROMPT, PARAMS, keep=True))
    yield made
    made.close()


def said(session: GenerationSession, *lines: str) -> list[str]:
    """What the line mode answers to these lines, without its greeting."""
    answer = io.StringIO()
    converse(session, io.StringIO("".join(f"{line}\n" for line in lines)), answer)
    return answer.getvalue().splitlines()[1:]


# --- conditions -----------------------------------------------------------------------------------------------------

VALUES = {
    "top1": 0.2,
    "margin": 0.1,
    "entropy": 2.0,
    "token": "\n",
    "token_id": 7,
    "length": 40,
    "step": 9,
    "phase": "x",
}
TRUE = [
    "top1 < 0.3", 'token == "\\n"', "length == 40", "0.1 < top1 < 0.3", "not top1 > 0.3", "-1 < margin",
    'phase == "x" and (step >= 9 or entropy > 5)', "token_id != 8", "'a' > token", "length==40",
]  # fmt: skip
WRONG = [
    ("top1", "expected a comparison"), ("top1 <", "expected a condition"), ("", "expected a condition"),
    ("top2 < 1", "there is no 'top2'; names: top1"), ("token < 3", "token is text and 3 is a number"),
    ("length == '4'", "cannot be compared"), ("length is 4", "expected one of"), ("length in (1,)", "expected one of"),
    ("f(1) < 2", "expected a name, a number"), ("length.real < 2", "expected a name"), ("length + 1 < 2", "a name"),
    ("length < True", "expected a name"), ("-'a' < token", "expected a name"), ("(lambda: 1)() == 1", "a name"),
    ("length == 1; 2", "expected a condition"), ("(" * 300 + "1" + ")" * 300, "at most 500"),
    ("(" * 240 + "1" + ")" * 240, "expected"), ("length == 1j", "expected a name"), ("x" * 501, "at most 500"),
]  # fmt: skip


@pytest.mark.parametrize("text", TRUE)
def test_conditions_that_hold(text: str) -> None:
    condition = Condition.parse(text)
    assert condition.holds(VALUES.get)
    assert not Condition.parse(f"not ({text})").holds(VALUES.get)


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(ConditionError, match="(?s)" + message.replace("(", r"\(")):
        Condition.parse(text)


def test_a_name_without_a_value_is_neither_true_nor_false() -> None:
    def value(name: str) -> float | None:
        return {"length": 3.0}.get(name)

    for text in ("top1 < 0.3", "not top1 < 0.3", "top1 < 0.3 and length == 3", "top1 == top1"):
        assert not Condition.parse(text).holds(value)
    assert Condition.parse("top1 < 0.3 or length == 3").holds(value)
    assert not Condition.parse("not (top1 < 0.3 and length == 3)").holds(value)
    assert Condition.parse("not (top1 < 0.3 and length == 4)").holds(value)


@given(st.text(max_size=60) | st.text("top1<length=0.3\"'()andor not-!,:[]{}", max_size=40))
@example("\0")
@example("length == \ud800")
@example("9" * 400 + "**9 < 1")
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_condition_or_a_clear_error(text: str) -> None:
    with suppress(ConditionError):
        Condition.parse(text).holds(VALUES.get)


# --- moves ----------------------------------------------------------------------------------------------------------


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


def test_breakpoints_stop_where_they_should(session: GenerationSession) -> None:
    answer = said(session, "break phase decode", "run", "run", "delete 1", "break guard all_finished", "run", "breaks")
    assert answer[0] == "breakpoint 1: phase decode"
    assert answer[1:3] == [
        "stopped: breakpoint 1 (phase decode)", "run 1  paused  at decode  step 3 of 3  tokens 0",
    ]  # fmt: skip
    assert "run 1  paused  at decode  step 6 of 6  tokens 1" in answer
    assert answer[-3] == "stopped: breakpoint 2 (guard all_finished)"
    assert answer[-2] == "run 1  paused  at detokenize  step 25 of 25  tokens 8"
    assert answer[-1] == "breakpoint 2: guard all_finished"


def test_a_condition_is_looked_at_once_a_token(session: GenerationSession) -> None:
    said(session, "break if length == 3", "run")
    assert (session.run.phase.name, session.run.step_count) == ("sample", 11)
    assert said(session, "run")[-2] == "stopped: done"
    said(session, "delete 1", "goto 0", 'break if phase == "check_stop" and length > 1', "run")
    assert (session.run.phase.name, len(session.run.context.output_ids[0])) == ("check_stop", 2)


def test_conditions_on_probabilities_and_text_hold_where_they_say(
    session: GenerationSession, generator: Generator
) -> None:
    tokens, sure = [], []
    while not session.run.status.ended:
        session.next_token()
        if session.run.phase.name == "sample":
            shown = session.distribution()
            assert shown.spread
            sure.append(shown.spread.top1)
        tokens.append(session.run.context.output_ids[0][-1])
    session.goto(0)
    least = min(sure)
    session.break_at("if", f"top1 < {least + 1e-9}")
    session.run_on()
    assert len(session.run.context.output_ids[0]) == sure.index(least) + 1
    session.goto(0)
    session.breakpoints.clear()
    session.break_at("if", f"token == {generator.tokenizer.decode([tokens[4]])!r} and token_id == {tokens[4]}")
    session.run_on()
    assert session.run.context.output_ids[0] == tokens[: tokens.index(tokens[4]) + 1]


def test_step_and_next_stop_at_breakpoints(session: GenerationSession) -> None:
    session.break_at("phase", "decode")
    assert session.step(10) == "breakpoint 1 (phase decode)"
    assert session.run.step_count == 3
    assert session.next_token(5) == "breakpoint 1 (phase decode)"
    assert session.run.step_count == 6


def test_pause_from_another_thread(
    session: GenerationSession, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(generator, monkeypatch)
    with ThreadPoolExecutor() as pool:
        driven = pool.submit(session.run_on)
        gate.wait()
        assert session.progress() == ("decode", 3, 0)
        session.pause()
        gate.open(100)
        assert driven.result(PATIENCE) == "paused"
    assert (session.run.phase.name, session.run.step_count) == ("check_stop", 4)
    assert session.run_on() == "done"


def test_what_is_shown_is_what_is_drawn_from(session: GenerationSession) -> None:
    drawn_from: dict[int, list[tuple[int, float]]] = {}
    seen = set()
    with pytest.raises(NoDistribution, match="Prefill makes the first"):
        session.distribution()
    while session.run.phase.name != "detokenize":
        session.step()
        if session.run.phase.name == "prefill":
            continue
        context = session.run.context
        if not context.live:
            with pytest.raises(NoDistribution, match="row 0 has ended: nothing more is drawn"):
                session.distribution()
            continue
        shown = session.distribution()
        seen.add((session.run.phase.name, shown.drawn is None))
        chances = [(found.token_id, found.chance) for found in shown.candidates]
        assert drawn_from.setdefault(shown.place, chances) == chances
        assert sum(found.chance for found in shown.candidates) == pytest.approx(1)
        assert all(bool(found.chance) == (not found.removed) for found in shown.candidates)
        if shown.drawn is not None:
            assert shown.drawn == context.tokens(0)[-1]
            assert dict(chances)[shown.drawn] > 0
    assert seen == {("sample", True), ("decode", False), ("check_stop", True), ("check_stop", False)}


def test_each_cut_is_named(session: GenerationSession) -> None:
    session.step(2)
    context = session.run.context
    logits = context.bound_engine.buffers.logits[context.slots[0]]
    removed: dict[str, set[int]] = {}
    for found in session.distribution().candidates:
        removed.setdefault(found.removed, set()).add(found.token_id)
    stages = [
        {"top_k": 20, "top_p": 1.0, "min_p": 0.0}, {"top_k": 20, "top_p": 0.9, "min_p": 0.0},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
    ]  # fmt: skip
    kept = [set(candidates(logits, temperature=1.1, **stage).token_ids.tolist()) for stage in stages]
    assert removed[""] == kept[2]
    assert removed.get("min-p", set()) == kept[1] - kept[2]
    assert removed["top-p"] == kept[0] - kept[1]
    assert removed["top-k"].isdisjoint(kept[0])
    session.set("temperature", "0")
    shown = session.distribution()
    assert [found.token_id for found in shown.candidates if not found.removed] == [int(np.argmax(logits))]
    assert {found.removed for found in shown.candidates} == {"", "temperature"}


MOVES = st.sampled_from(
    ["step", "step 4", "next", "next 2", "run", "back", "back 3", "goto 0", "goto 7", "goto 12", "candidates",
     "buffers", "fork", "switch", "close", "timeline", "text", "guards", "machine", "break phase decode",
     "break if top1 < 0.9", "delete 1", "where"]
)  # fmt: skip


@given(st.lists(MOVES, max_size=12))
@settings(max_examples=40, deadline=None)
def test_looking_and_walking_change_no_token(generator: Generator, lines: list[str]) -> None:
    expected = generator.generate(PROMPT, PARAMS).output_ids[0]
    session = GenerationSession.live(generator, generator.start(PROMPT, PARAMS, keep=True))
    try:
        for line in lines:
            execute(session, line)
            View.of(session)
        session.breakpoints.clear()
        for branch in session.branches:
            session.branches.switch(branch.number)
            if not session.run.status.ended:
                session.run_on()
            assert session.run.context.output_ids[0] == expected
    finally:
        session.close()
    assert generator.engine.kv_cache.free == 4


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
    monkeypatch.undo()
    assert said(session, "step")[0].startswith("error: the run has ended (failed)")
    assert said(session, "back", "run")[-1] == "run 1  done  at done  step 26 of 26  tokens 8"
    assert said(session, "where") == ["run 1  done  at done  step 26 of 26  tokens 8"]


class Loud(Phase[Generation, None]):
    """Does nothing, between two phases."""


def test_a_machine_with_an_inserted_phase(generator: Generator) -> None:
    longer = machine.insert(Loud(), between=("decode", "check_stop"))
    other = Generator(generator.engine, generator.tokenizer, machine=longer, folder=generator.folder)
    session = GenerationSession.live(other, other.start(PROMPT, PARAMS, keep=True))
    answer = said(session, "break phase loud", "run", "machine", "delete 1", "run")
    drawing = answer[2:]
    assert any(line.startswith("▶ loud") for line in drawing)
    assert any("1▶ loud" in line for line in drawing)
    assert answer[-1].startswith("run 1  done")
    session.close()


def test_the_machine_is_drawn_with_its_counts() -> None:
    counts = {("sample", "decode"): 1234, ("check_stop", "sample"): 12}
    lines = draw(machine, "check_stop", counts, ("check_stop", "sample"))
    text = ["".join(part for part, _ in line) for line in lines]
    assert {len(line) for line in text} == {40}
    assert "│check_stop├──12─▶│sample├─1234▶│decode│" in text
    assert [part for line in lines for part, look in line if look == "lit"] == ["check_stop"]
    assert "12" in "".join(part for line in lines for part, look in line if look == "taken")


def test_batches_show_one_row_at_a_time(generator: Generator) -> None:
    session = GenerationSession.live(generator, generator.start([PROMPT, "x"], PARAMS, keep=True))
    answer = said(session, "next 2", "text", "row 1", "text", "candidates 2")
    assert "run 1  paused  at sample  step 8 of 8  tokens 2  row 1" in answer
    assert [line for line in answer if line.startswith("prompt")] != []
    assert [row.owner for row in session.cache()][:2] == ["run 1 row 0", "run 1 row 1"]
    session.close()


# --- records --------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(generator: Generator, tmp_path: Path) -> Path:
    path = tmp_path / "fox.jsonl"
    run = generator.start(PROMPT, PARAMS, journal=path, digest_every=1)
    run.step()
    run.step()
    run.edit("force", token=30)
    run.resume()
    return path


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
        assert session.progress() == record.progress()
    assert said(record, "next 99")[-2] == "stopped: the end of the record (done)"
    assert "error: the end of the record (done): go back" in said(record, "step")[0]
    assert said(record, "text")[-1] == f"recorded text: {record.run.context.output_texts[0]!r}"
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
        assert said(record, line)[0].startswith("error: a record has no model, so one cannot ")
    assert said(GenerationSession.recorded(next(iter(sorted(JOURNALS.glob("*.jsonl"))))), "next", "candidates")[-1]


@pytest.mark.parametrize("path", sorted(JOURNALS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_record_of_the_corpus_can_be_walked(path: Path) -> None:
    record = GenerationSession.recorded(path)
    record.run_on()
    end = record.run.context.output_ids
    assert View.of(record).notice == ""
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
    assert "was never finished" in View.of(record).notice


# --- the command line ---------------------------------------------------------------------------------------------


def phasewalk(*arguments: str, stdin: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from phases.cli import main; main()", *arguments],
        input=stdin, capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "200"}, check=False,
    )  # fmt: skip


def test_without_a_terminal_lines_are_read(chat_folder: Path, tmp_path: Path) -> None:
    options = ("--model", str(chat_folder), "--seed", "5", "--max-new-tokens", "4")
    done = phasewalk("step", PROMPT, *options, stdin="next\n\n# a remark\nnonsense\nquit\nrun\n", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "run 1  ready  at tokenize  step 0 of 0  tokens 0"
    assert lines[1].startswith("token 1: ")
    assert lines[3].startswith("error: expected a command, not 'nonsense'")
    assert len(lines) == 4
    assert phasewalk("step", PROMPT, *options, "--plain", cwd=tmp_path).returncode == 0


def test_a_journal_needs_no_model(tmp_path: Path, journal: Path) -> None:
    code = (
        "import sys; from phases.cli import main; sys.argv = ['phasewalk', 'step', '--journal', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('transformers', 'tokenizers', 'textual', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(journal)], input="run\ntext\n", capture_output=True, text=True, check=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert "stopped: the end of the record (done)" in done.stdout
    assert done.stdout.endswith("[]\n")


USAGE = [
    (("step",), 2, "give a prompt"), (("step", "x", "--journal", "{journal}"), 2, "holds its own prompt"),
    (("step", "x", "--engine", "abacus"), 2, "there is no engine"), (("step", "x", "--size", "3x4"), 2, "20x10"),
    (("step", "x", "--screenshot", "{journal}"), 2, "exists already"), (("step", "x", "--top-p", "0"), 2, "top_p"),
    (("step", "--journal", "{damaged}"), 1, "phasewalk: "),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), USAGE)
def test_a_wrong_command_line(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, journal: Path
) -> None:
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("{}\n")
    done = phasewalk(*(part.format(journal=journal, damaged=damaged) for part in arguments), cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- the full screen ----------------------------------------------------------------------------------------------

Pilot = Callable[..., Awaitable[None]]


def on_screen(
    session: GenerationSession,
    script: Callable[[DebuggerApp, Pilot], Awaitable[None]],
    size: tuple[int, int] = (120, 40),
) -> None:
    """Run a script of key presses on the application."""

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test(size=size) as pilot:
            await app.settled()

            async def press(*keys: str) -> None:
                for key in keys:
                    await pilot.press(key)
                    await app.settled()
                await pilot.pause()

            await script(app, press)

    asyncio.run(play())


def seen(app: DebuggerApp) -> str:
    """The screen as text."""
    rows: dict[float, str] = {}
    found = ET.fromstring(app.export_screenshot()).iter("{http://www.w3.org/2000/svg}text")
    for node in sorted(found, key=lambda node: float(node.get("x", 0))):
        row, column = float(node.get("y", 0)), round(float(node.get("x", 0)) / 12.2)
        rows[row] = rows.get(row, "").ljust(column) + "".join(node.itertext())
    return "\n".join(rows[row] for row in sorted(rows)).replace("\xa0", " ")


def typed(text: str) -> list[str]:
    names = {" ": "space", ".": "full_stop"}
    return [names.get(character, character) for character in text]


def test_keys_move_the_run(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        run = session.run
        await press("s")
        assert run.step_count == 1
        await press("n", "n")
        assert run.step_count == 8
        assert "2 tokens" in seen(app)
        await press("b")
        assert run.step_count == 7
        await press("left", "left", "right")
        assert (run.step_count, run.recorded_steps) == (6, 8)
        await press("home")
        assert run.step_count == 0
        await press("end", "pageup")
        assert run.step_count == 0
        await press("pagedown", "r")
        assert str(run.status) == "done"
        assert "done at done" in " ".join(seen(app).split())
        await press("b")
        assert run.step_count == 25

    on_screen(session, script)


def test_keys_that_come_fast_are_not_lost(session: GenerationSession) -> None:
    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test() as pilot:
            await app.settled()
            await pilot.press("s", "s", "s", "s", "n")
            await app.settled()
            assert session.run.step_count == 5

    asyncio.run(play())


def test_the_screen_shows_the_place(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        assert "no logits yet" in seen(app)
        await press("n", "s")
        text = seen(app)
        assert "│sample├──2──▶│decode│" in text
        assert "token 2 was drawn from" in text
        assert "kv run 1" in text
        for buffer in session.buffers():
            assert f"{buffer.address:#x}" in text
        assert "because ~nothing_left" in text
        assert "T P S D C S D" in text
        view = View.of(session)
        assert isinstance(view.distribution, Distribution)
        assert view.text.last in text
        await press("s", "s")
        assert "candidates for token 3" in seen(app)
        assert "nothing_left" in seen(app)

    on_screen(session, script)


@pytest.mark.parametrize("size", [(80, 24), (100, 30)])
def test_small_screens_show_one_panel_at_a_time(session: GenerationSession, size: tuple[int, int]) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n")
        assert "entropy" in seen(app)
        assert "input_ids" not in seen(app)
        await press("3")
        assert "input_ids" in seen(app)
        assert "kv run 1" in seen(app)
        await press("4")
        assert "no breakpoints: k sets one" in seen(app)
        await press("2")
        assert "nothing_left" in seen(app)
        text = seen(app)
        for word in ("quit", "help", "timeline", "detokenize", "the quick fox"):
            assert word in text

    on_screen(session, script, size)


def test_prompts_set_breakpoints_and_change_the_run(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("k", *typed("phase decode"), "enter")
        assert [str(found) for found in session.breakpoints] == ["phase decode"]
        await press("k", *typed("if length"), "enter")
        assert "error: expected a comparison" in seen(app)
        await press("k", "escape")
        assert not isinstance(app.screen, Asked)
        await press("r")
        assert "stopped: breakpoint 1 (phase decode)" in seen(app)
        await press("K", "1", "enter", "x", *typed("30"), "enter", "t", "0", "enter", "n", "n")
        assert session.run.context.output_ids[0][1] == 30
        assert session.run.context.request.requests[0].params.temperature == 0
        await press("a", *typed("the fox"), "enter")
        assert session.run.context.forced[0]
        await press("f")
        assert "run 2 of 2" in seen(app)
        await press("tab")
        assert "run 1 of 2" in seen(app)
        await press("tab", "c")
        assert len(session.branches) == 1
        await press("colon", *typed("timeline"), "enter")
        assert isinstance(app.screen, Pages)
        assert "tokenize -> prefill" in seen(app)
        await press("escape", "question_mark")
        assert "walk the timeline" in seen(app)
        await press("q", "d", "v")
        assert app.theme == "textual-light"
        assert "the quick fox" in seen(app)
        await press("escape", "q")

    on_screen(session, script)


def test_save_and_load_by_keys(session: GenerationSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n", "w", *typed("a.snap"), "enter")
        assert Path("a.snap").exists()
        await press("l", *typed("a.snap"), "enter")
        assert "run 2 of 2" in seen(app)
        assert session.run.step_count == 5

    on_screen(session, script)


def test_running_does_not_block_and_p_pauses(
    session: GenerationSession, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, glanced = Gate(generator, monkeypatch), asyncio.Event()

    def noted(*arguments: Any) -> View:
        glanced.set()
        return glance(*arguments)

    monkeypatch.setattr("phases.debugger.screen.glance", noted)

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test(size=(100, 30)) as pilot:
            await app.settled()
            await pilot.press("r")
            await asyncio.to_thread(gate.wait)
            glanced.clear()
            await glanced.wait()
            await pilot.pause()
            assert "running at decode" in " ".join(seen(app).split())
            await pilot.press("p")
            gate.open(100)
            await app.settled()
            await pilot.pause()
            assert session.run.status == "paused"
            assert session.run.step_count == 4
            assert "stopped: paused" in seen(app)
            await pilot.press("r")
            await app.settled()
            assert session.run.status == "done"

    asyncio.run(play())


def test_quitting_while_it_runs(
    session: GenerationSession, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(generator, monkeypatch)

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test() as pilot:
            await app.settled()
            await pilot.press("r")
            await asyncio.to_thread(gate.wait)
            await pilot.press("q")
            gate.open(100)

    asyncio.run(play())
    session.close()
    assert generator.engine.kv_cache.free == 4


def test_a_failure_is_shown(session: GenerationSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.run.context.bound_engine, "decode", lambda rows: 1 / 0)

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("r")
        assert "failed at decode" in " ".join(seen(app).split())
        assert "ZeroDivisionError" in seen(app)
        monkeypatch.undo()
        await press("b", "r")
        assert "done at done" in " ".join(seen(app).split())

    on_screen(session, script)


def test_a_record_on_screen(journal: Path) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n", "n")
        assert "buffers are not recorded" in seen(app)
        assert "logit" in seen(app)
        assert "recorded" in seen(app)
        await press("end", "f")
        assert "error: a record has no model" in seen(app)

    on_screen(GenerationSession.recorded(journal), script)


def test_a_picture(session: GenerationSession, tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    picture(session, path, ["n", "n", "s"], (100, 30))
    ET.parse(path)
    assert session.run.step_count == 9


def test_text_of_the_model_cannot_reach_the_terminal_as_control_codes(generator: Generator) -> None:
    prompt = "a\x1b[31m\x07\tb\u202ec\r\x9b"
    session = GenerationSession.live(generator, generator.start(RowRequest(prompt=prompt, raw=True), PARAMS, keep=True))
    session.append("\x1b]0;title\x07")

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n", "n", "n", "v")
        assert "a␛[31m␇␉b" in seen(app)
        assert not set(seen(app)) & set("\x1b\x07\x9b\u202e")

    on_screen(session, script)
    assert not set("".join(said(session, "text", "candidates", "timeline"))) & set("\x1b\x07\x9b\u202e")
    session.close()


def test_wide_characters_keep_columns_straight() -> None:
    assert fitted("\u4f60\u597d", 6) == "\u4f60\u597d  "
    assert fitted("\u4f60\u597d", 3) == "\u4f60…"
    assert fitted("abcdef", 3) == "ab…"


@given(st.floats(0, 1), st.integers(1, 60))
def test_bars_and_percentages_fit(share: float, width: int) -> None:
    assert len(bar_of(share, width)) == width
    assert len(percent(share)) <= 5
    assert bar_of(share, width).strip() or not share
