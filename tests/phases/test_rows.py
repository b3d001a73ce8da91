"""Rows end one by one: each with a reason of its own and a result as soon as it has one, and none disturbs another."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asynchronous_engine import AsynchronousEngine
from command_line import Command
from gate import Gate
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import LogitsError, NumpyEngine, load_engine
from phases import FinishReason, Generation, Generator, LogitsPhase, RequestError, RowResult, SamplingParams, machine
from phases.files.answering import answer_all
from phases.files.source import read as read_requests
from phases.generation import check_stop, sample
from phases.replay import replay
from phases.views.recorded_rows import RecordedRows
from phases.views.report import report_of
from statemachine import IllegalMove, Journal, PhaseError, Run, Status
from statemachine.record.records import SignalRecord, StepRecord

PROMPTS = ["the quick fox", "Decode appends to it.", "x", "the lazy dog jumps"]
LENGTHS = (3, 9, 5, 7)
PARAMS = [
    SamplingParams(temperature=1.1, seed=length, max_new_tokens=length, stop_token_ids=(), logprobs=1)
    for length in LENGTHS
]


# --- results as they come -----------------------------------------------------------------------------------------


def rows_of(generator: Generator, x: Any, params: Any) -> tuple[list[tuple[int, RowResult]], Any]:
    found: list[tuple[int, RowResult]] = []
    result = generator.generate(x, params, on_finished=lambda row, of_row: found.append((row, of_row)))
    return found, result


def test_results_come_row_by_row_as_they_finish(generator: Generator) -> None:
    whole = generator.generate(PROMPTS, PARAMS)
    found, result = rows_of(generator, PROMPTS, PARAMS)
    assert result == whole
    assert [row for row, _ in found] == [0, 2, 3, 1]
    for row, one in found:
        assert one == RowResult(
            output_ids=whole.output_ids[row], text=whole.output_texts[row], finish_reason=FinishReason.LENGTH,
            error=None, prompt_tokens=whole.prompt_tokens[row], output_tokens=LENGTHS[row],
            logprobs=whole.logprobs[row], prompt_logprobs=None,
        )  # fmt: skip


def test_a_result_is_there_while_the_others_go_on(generator: Generator) -> None:
    with generator.start(PROMPTS, PARAMS) as run:
        seen = [(row, len(run.context.output_ids[1])) for row, _ in generator.finished(run)]
        assert seen == [(0, 3), (2, 5), (3, 7), (1, 9)]
        assert run.status is Status.DONE


def test_asyncio_calls_back_in_the_thread_of_its_loop(generator: Generator) -> None:
    called: list[tuple[int, str, int]] = []

    async def main() -> Any:
        return await generator.agenerate(
            PROMPTS, PARAMS, on_finished=lambda row, of_row: called.append((row, of_row.text, threading.get_ident()))
        )

    result = asyncio.run(main())
    assert called == [(row, result.output_texts[row], threading.get_ident()) for row in (0, 2, 3, 1)]


def test_what_a_callback_raises_ends_the_run_and_is_raised(generator: Generator) -> None:
    called: list[int] = []

    def refuse(row: int, of_row: RowResult) -> None:
        called.append(row)
        raise ZeroDivisionError("mine")

    async def main() -> None:
        await generator.agenerate(PROMPTS, PARAMS, on_finished=refuse)

    for way in (lambda: generator.generate(PROMPTS, PARAMS, on_finished=refuse), lambda: asyncio.run(main())):
        with pytest.raises(ZeroDivisionError, match="mine"):
            way()
        assert generator.free_rows == 4
    assert called == [0, 0]


def test_rows_that_end_with_their_run_are_told_too(generator: Generator) -> None:
    with generator.start(PROMPTS, PARAMS) as run:
        reasons = []
        for row, of_row in generator.finished(run):
            reasons.append((row, of_row.finish_reason))
            if row == 2:
                run.signal("cancel")
    assert reasons == [(0, "length"), (2, "length"), (1, "cancelled"), (3, "cancelled")]


def test_a_stream_tells_rows_apart_and_why_each_ended(generator: Generator) -> None:
    result = generator.generate(PROMPTS, PARAMS)
    pieces = list(generator.stream(PROMPTS, PARAMS))
    for row in range(4):
        mine = [piece for piece in pieces if piece.row == row]
        assert "".join(mine) == result.output_texts[row]
        assert [piece.finish_reason for piece in mine] == [None] * (len(mine) - 1) + ["length"]
    assert [piece.row for piece in pieces if piece.finish_reason] == [0, 2, 3, 1]
    stop = result.output_ids[0][1]  # whose text is not shown
    *_, last = generator.stream(PROMPTS[0], SamplingParams(stop_token_ids=(stop,)).over(PARAMS[0]))
    assert last.finish_reason == "stop"


def test_a_stream_tells_of_rows_that_are_cancelled(generator: Generator) -> None:
    with generator.start(PROMPTS, PARAMS) as run:
        texts, reasons = [""] * 4, {}
        for piece in generator.pieces(run):
            texts[piece.row] += piece
            if piece.finish_reason:
                reasons[piece.row] = piece.finish_reason
            if 0 in reasons and 1 not in reasons:
                if 3 not in reasons and 3 in run.context.live:
                    generator.cancel_row(run, 3)
                elif 2 in reasons:
                    run.signal("cancel")
        assert reasons == {0: "length", 3: "cancelled", 2: "length", 1: "cancelled"}
        assert texts == generator.result(run).output_texts


# --- one row is cancelled -----------------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(0, 29), st.sampled_from(PROMPTS), st.booleans())
@settings(max_examples=40, deadline=None)
def test_cancelling_any_row_at_any_step_leaves_the_others_to_the_bit(
    generator: Generator, row: int, step: int, prompt: str, mean: bool
) -> None:
    x = [prompt, *PROMPTS[1:]] if mean else [prompt] * 4  # of which each is a copy of the first
    whole = generator.generate(x, PARAMS)
    with generator.start(x, PARAMS) as run:
        while run.step_count < step and not run.status.ended:
            run.step()
        if row not in run.context.live:
            with pytest.raises(RequestError, match=rf"row {row} cannot be cancelled: rows that have not ended: "):
                generator.cancel_row(run, row)
            return
        before = len(run.context.output_ids[row])
        generator.cancel_row(run, row)
        run.start() if run.status is Status.READY else run.resume()
        result = generator.result(run)
    assert run.status is Status.DONE
    for other in {0, 1, 2, 3} - {row}:
        assert result.output_ids[other] == whole.output_ids[other]
        assert result.logprobs[other] == whole.logprobs[other]
        assert result.finish_reasons[other] == "length"
    if result.finish_reasons[row] == "cancelled":
        kept = result.output_tokens[row]
        assert before <= kept <= before + 1  # a token that was drawn already
        assert result.output_ids[row] == whole.output_ids[row][:kept]
        assert result.output_texts[row] == generator.tokenizer.decode(result.output_ids[row])
        assert len(result.logprobs[row] or ()) == kept
    else:  # it ended by the token that was drawn already
        assert result.output_ids[row] == whole.output_ids[row]


def test_another_thread_cancels_a_row_of_a_run_under_way(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generator.generate(PROMPTS, PARAMS)
    gate = Gate(generator, monkeypatch)
    run = generator.start(PROMPTS, PARAMS)
    driving = threading.Thread(target=run.start)
    driving.start()
    for _ in range(4):
        gate.wait()
        gate.open()
    gate.wait()  # the fifth token of each is drawn
    generator.cancel_row(run, 3)
    with pytest.raises(RequestError, match="row 0 cannot be cancelled: rows that have not ended: 1, 2, 3"):
        generator.cancel_row(run, 0)
    gate.open(1000)
    driving.join(60)
    result = generator.result(run)
    assert result.finish_reasons == ["length", "length", "length", "cancelled"]
    assert result.output_ids[:3] == whole.output_ids[:3]
    assert result.output_ids[3] == whole.output_ids[3][:5]


def test_a_row_that_ends_before_it_is_cancelled_ends_as_it_did(generator: Generator, tmp_path: Path) -> None:
    with generator.start(PROMPTS, PARAMS, journal=tmp_path / "run.jsonl") as run:
        run.until(lambda run: run.phase is check_stop and len(run.context.output_ids[0]) == 2)
        generator.cancel_row(run, 0)
        assert run.pending == ("cancel_row",)
        run.resume()
        assert generator.result(run).finish_reasons == ["length"] * 4
        [refused] = run.events
        assert (refused.kind, refused.name, refused.outcome) == ("refused", "cancel_row", 0)
        assert "row 0 cannot be cancelled: rows that have not ended: 1, 2, 3" in refused.reason
    done = replay(tmp_path / "run.jsonl", generator=generator)
    done.run.close()
    assert done.divergence is None


@pytest.mark.parametrize("row", [7, -1, 4])
def test_a_row_that_there_is_not_is_refused_by_name(generator: Generator, row: int) -> None:
    with generator.start(PROMPTS, PARAMS) as run:
        run.until(sample)
        for way in (lambda: generator.cancel_row(run, row), lambda: run.signal("cancel_row", row)):
            with pytest.raises(RequestError, match=rf"row {row} cannot be cancelled: rows that have not ended: 0, 1"):
                way()
        with pytest.raises(ValueError, match="cancel_row"):
            run.signal("cancel_row", "all")
        assert run.context.live == (0, 1, 2, 3)
    with pytest.raises(IllegalMove):
        run.signal("cancel_row", 0)


def cancelled(generator: Generator, path: Path | None = None) -> Run[Generation]:
    """A run of which row 1 was cancelled after four tokens."""
    run = generator.start(PROMPTS, PARAMS, journal=path, keep=True, digest_every=1)
    run.until(lambda run: run.phase is sample and len(run.context.output_ids[1]) == 4)
    generator.cancel_row(run, 1)
    run.resume()
    return run


def test_it_is_recorded_replayed_played_and_shown(generator: Generator, tmp_path: Path) -> None:
    run = cancelled(generator, tmp_path / "run.jsonl")
    result = generator.result(run)
    run.close()
    journal = Journal.open(tmp_path / "run.jsonl")
    for mode in ("verify", "play"):
        done = replay(journal, mode, generator=generator)  # type: ignore[arg-type]
        done.run.close()
        assert done.divergence is None
        assert done.run.context.output_ids == result.output_ids
        assert done.run.context.finish_reasons == ["length", "cancelled", "length", "length"]
    rows = RecordedRows(journal, machine)
    ended = []
    for record in journal.timeline():
        if isinstance(record, SignalRecord):
            rows.event(record)
        elif isinstance(record, StepRecord):
            ended.append(rows.step(record).rows)
    assert ended[1] == (0, 1, 2, 3)
    assert ended[-2] == (3,)
    assert rows.context.finish_reasons == ["length", "cancelled", "length", "length"]
    assert "ended by cancelled" in report_of(journal)


def test_it_is_taken_back_by_going_back_and_kept_by_forks_and_snapshots(generator: Generator, tmp_path: Path) -> None:
    whole = generator.generate(PROMPTS, PARAMS)
    run = cancelled(generator)
    result = generator.result(run)
    place = next(event.number for event in run.events if event.name == "cancel_row")
    run.goto(place + 2)
    assert run.context.live == (2, 3)
    run.snapshot(tmp_path / "run.snap")
    run.resume()
    assert generator.result(run) == result
    run.goto(place)  # where it had not been cancelled
    assert run.context.live == (1, 2, 3)
    run.resume()
    assert generator.result(run).output_ids == whole.output_ids
    run.close()
    with generator.resume(tmp_path / "run.snap") as resumed:
        resumed.resume()
        assert generator.result(resumed).output_ids == result.output_ids
        assert generator.result(resumed).finish_reasons == result.finish_reasons


def test_a_run_whose_rows_are_all_cancelled_is_done(generator: Generator, tmp_path: Path) -> None:
    for at in ("prefill", "sample"):
        path = tmp_path / f"{at}.jsonl"
        with generator.start(PROMPTS, PARAMS, journal=path) as run:
            run.until(lambda run, at=at: run.phase_name == at)
            for row in range(4):
                generator.cancel_row(run, row)
            run.resume()
            assert run.status is Status.DONE
            result = generator.result(run)
            assert (result.finish_reasons, result.output_texts) == (["cancelled"] * 4, [""] * 4)
        assert replay(path, generator=generator).divergence is None


def test_an_edit_of_a_row_that_was_cancelled_is_refused(generator: Generator) -> None:
    with generator.start(PROMPTS, PARAMS) as run:
        run.until(sample)
        generator.cancel_row(run, 2)
        with pytest.raises(RequestError, match="row 2 cannot be edited: rows that are not finished: 0, 1, 3"):
            run.edit("force", row=2, token=7)


def test_after_a_phase_that_was_inserted_before_sample_others_are_still_the_same(chat_folder: Path) -> None:
    class Shift(LogitsPhase):
        def adjust(self, context: Generation, row: int, logits: np.ndarray) -> None:
            logits[: 40 + len(context.output_ids[row])] += 3

    with Generator.from_pretrained(chat_folder, machine=machine.insert(Shift(), before="sample")) as shifting:
        whole = shifting.generate(PROMPTS, PARAMS)
        for at in ("shift", "sample"):
            with shifting.start(PROMPTS, PARAMS) as run:
                run.until(lambda run, at=at: run.phase_name == at and len(run.context.output_ids[1]) == 2)
                shifting.cancel_row(run, 1)
                run.resume()
                result = shifting.result(run)
            assert result.output_ids == [whole.output_ids[0], whole.output_ids[1][:2], *whole.output_ids[2:]]
            assert (result.logprobs[0], result.logprobs[2:]) == (whole.logprobs[0], whole.logprobs[2:])


# --- one row fails ------------------------------------------------------------------------------------------------


class Spoil(LogitsPhase):
    """Leaves nothing to draw from to rows whose prompt is one of these, once they have so many tokens."""

    def __init__(self, **tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def adjust(self, context: Generation, row: int, logits: np.ndarray) -> None:
        if self.tokens.get(str(context.request.requests[row].prompt)) == len(context.output_ids[row]):
            logits[5] = np.nan


def spoiling(folder: Path, kind: str, **tokens: int) -> Generator:
    """A generator whose rows of some prompts fail, on an engine that tells at once or late."""
    engine: Any = load_engine(folder, "numpy", max_batch=4)
    assert isinstance(engine, NumpyEngine)
    if kind == "late":
        engine = AsynchronousEngine(engine)
    plain = Generator.from_pretrained(folder, max_batch=4)
    return Generator(
        engine, plain.tokenizer, defaults=plain.defaults, folder=folder,
        machine=machine.insert(Spoil(**tokens), before="sample"),
    )  # fmt: skip


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("kind", ["at once", "late"])
def test_a_row_without_a_distribution_fails_alone(
    generator: Generator, chat_folder: Path, tmp_path: Path, kind: str, scored: bool
) -> None:
    top = 1 if scored else None
    params = [
        SamplingParams(temperature=1.1, seed=n, max_new_tokens=n, stop_token_ids=(), logprobs=top) for n in LENGTHS
    ]
    whole = generator.generate(["a", "b", "a", "c"], params)
    with spoiling(chat_folder, kind, b=4, c=0) as broken:
        path = tmp_path / "run.jsonl"
        with broken.start(["a", "b", "a", "c"], params, journal=path, keep=True) as run:
            found = list(broken.finished(run))
            result = broken.result(run)
            assert run.status is Status.DONE
            assert [row for row, _ in found] == [3, 0, 1, 2]
            assert result.finish_reasons == ["length", "failed", "length", "failed"]
            assert result.output_ids == [
                whole.output_ids[0], whole.output_ids[1][:4], whole.output_ids[2], []
            ]  # fmt: skip
            assert (result.logprobs[0], result.logprobs[2]) == (whole.logprobs[0], whole.logprobs[2])
            assert [error and "NaN (first at token 5 of " in error for error in result.errors] == [
                None, True, None, True
            ]  # fmt: skip
            assert found[0][1].error == result.errors[3]
            for place in range(2, run.step_count, 3):
                run.goto(place)
                run.resume()
                assert broken.result(run) == result
        verified = replay(path, generator=broken)
        verified.run.close()
        assert verified.divergence is None
        played = replay(path, "play", machine=broken.machine)
        assert (played.divergence, played.run.context.errors) == (None, result.errors)
        assert "ended by failed: the logits hold NaN" in report_of(Journal.open(path), machine=broken.machine)


@pytest.mark.parametrize("kind", ["at once", "late"])
def test_if_no_row_comes_to_anything_it_is_the_error_of_the_run(chat_folder: Path, kind: str) -> None:
    with spoiling(chat_folder, kind, b=2, c=0) as broken:
        for x, places in (("c", 1), (["c", "b"], 3), (["c", "c"], 1)):
            with broken.start(x, PARAMS[0]) as run, pytest.raises(PhaseError) as failure:
                run.start()
            assert isinstance(failure.value.__cause__, LogitsError)
            assert len(run.context.output_ids[-1]) == places - 1
            with pytest.raises(PhaseError, match="NaN"):
                broken.generate(x, PARAMS[0])
            assert broken.free_rows == 4


def test_a_request_of_a_file_that_fails_is_answered_with_the_reason(chat_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    params = '"params": {"max_new_tokens": 3, "stop_token_ids": []}'
    source.write_text(f'{{"prompt": "a", {params}}}\n{{"prompt": "b", {params}}}\n')
    answers: list[dict[str, Any]] = []

    class SpoilSecond(LogitsPhase):
        def adjust(self, context: Generation, row: int, logits: np.ndarray) -> None:
            if row == 1:
                logits[5] = np.nan

    with Generator.from_pretrained(chat_folder, machine=machine.insert(SpoilSecond(), before="sample")) as broken:
        answer_all(broken, read_requests(source, ""), batch_size=2, give=lambda asked, answer: answers.append(answer))
    by_line = {answer["line"]: answer for answer in answers}
    assert by_line[1]["output_tokens"] == 3
    assert "NaN" in by_line[2]["error"]


SPOILED = """
import numpy as np
from phases import LogitsPhase, machine as built_in

class Spoil(LogitsPhase):
    def adjust(self, context, row, logits):
        if row == 1 and len(context.output_ids[row]) == 2:
            logits[:] = -np.inf

machine = built_in.insert(Spoil(), before="sample")
"""


def test_the_command_line_tells_which_row_failed_and_why(phasewalk: Command) -> None:
    Path("spoiled.py").write_text(SPOILED)
    options = ("-n", "2", "--seed", "1", "--max-new-tokens", "4", "--machine", "spoiled.py:machine")
    done = phasewalk("run", "Hello", *options)
    assert done.code == 1
    assert "phasewalk: row 1 failed: the logits hold nothing but -inf" in done.err
    assert "[row 0] " in done.out
    done = phasewalk("run", "Hello", *options, "--json")
    assert done.code == 1
    rows = json.loads(done.out)["rows"]
    assert [row["finish_reason"] for row in rows] == ["length", "failed"]
    assert "error" not in rows[0]
    assert rows[1]["error"].startswith("the logits hold nothing but -inf")


# --- the other reasons --------------------------------------------------------------------------------------------


def test_every_reason_by_which_a_row_ends_by_itself(generator: Generator) -> None:
    greedy = SamplingParams(temperature=0, max_new_tokens=8, stop_token_ids=())
    ids = generator.generate("the fox", greedy).output_ids[0]
    text = generator.tokenizer.decode(ids)
    asked = [
        SamplingParams(stop_token_ids=(ids[3],)), SamplingParams(stop=text[3:5]), SamplingParams(),
        SamplingParams(max_new_tokens=10**6),
    ]  # fmt: skip
    result = generator.generate(["the fox"] * 4, [params.over(greedy) for params in asked])
    assert result.finish_reasons == ["stop", "stop string", "length", "capacity"]
    assert result.errors == [None] * 4
