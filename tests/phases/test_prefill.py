"""Prompts go in piece by piece: to the same bits as at once, and whoever has something to say is heard in between."""

import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from small_chunks import chunks_of

from phases import Generation, Generator, RequestError
from phases.generation import prefill, sample
from phases.logprobs import TokenLogprob
from phases.replay import replay
from statemachine import JournalWriter, Run, Snapshot, Status

pytestmark = pytest.mark.slow

CHUNK, CAPACITY = 16, 400
OPEN: dict[str, Any] = {"temperature": 0.9, "seed": 4, "max_new_tokens": 5, "stop_token_ids": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("long"), max_position_embeddings=512)


@pytest.fixture(scope="module")
def long(folder: Path) -> Iterator[Generator]:
    with chunks_of(CHUNK), Generator.from_pretrained(folder, "numpy", max_batch=8, capacity=CAPACITY) as loaded:
        assert loaded.engine.prefill_chunk == CHUNK
        yield loaded


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(4, 290, count).tolist()


PROMPT = tokens(100)


def bits(run: Run[Generation]) -> list[tuple[bytes, bytes]]:
    """What a run that rests behind Prefill has of each row: its keys and values, and its logits."""
    context, engine = run.context, run.context.bound_engine
    return [
        (engine.export_kv(slot, 0, length).tobytes(), engine.read_logits(slot).tobytes())
        for slot, length in zip(context.slots, context.cached, strict=True)
    ]


def filled(generator: Generator, x: Any, bound: int) -> tuple[list[tuple[bytes, bytes]], list[tuple[int, ...]]]:
    """What Prefill leaves, and the lengths that each step of it came to."""
    with generator.start(x, OPEN, max_prefill_tokens=bound) as run:
        run.until(sample)
        return bits(run), [step.outcome for step in run.steps() if step.phase == "prefill"]


@given(st.integers(1, 150), st.lists(st.tuples(st.integers(1, 120), st.integers(0, 1)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_bound_gives_the_bits_of_no_bound_and_is_kept(
    long: Generator, bound: int, rows: list[tuple[int, int]]
) -> None:
    prompts = [tokens(count, seed) for count, seed in rows]
    whole, [_] = filled(long, prompts, 10_000)
    pieces, steps = filled(long, prompts, bound)
    assert pieces == whole
    assert long.generate(prompts, OPEN).output_ids == [long.generate(one, OPEN).output_ids[0] for one in prompts]
    first = [prompts.index(prompt) for prompt in prompts]  # equal ones are fed once, and copied
    for before, after in itertools.pairwise([(0,) * len(prompts), *steps]):
        assert 0 < sum(after[row] - before[row] for row in set(first)) <= max(bound, CHUNK)
    assert steps[-1] == tuple(map(len, prompts))


def test_a_request_an_option_of_a_run_and_the_generator_say_how_much_a_step_may_feed(
    long: Generator, folder: Path
) -> None:
    assert long.max_prefill_tokens == 512
    request = long.request(PROMPT, OPEN)
    assert request.max_prefill_tokens == 512
    with chunks_of(CHUNK), Generator.from_pretrained(folder, "numpy", max_prefill_tokens=48) as mine:
        with mine.start(PROMPT, OPEN) as run:
            run.until(sample)
            assert [step.outcome for step in run.steps(1)] == [(48,), (96,), (100,)]
        with mine.start(PROMPT, OPEN, max_prefill_tokens=200) as run:
            run.until(sample)
            assert [step.outcome for step in run.steps(1)] == [(100,)]
    for wrong in (0, -1, True, "many", 2**31):
        with pytest.raises(RequestError, match="max_prefill_tokens is a whole number of at least 1, not"):
            long.start(PROMPT, OPEN, max_prefill_tokens=wrong)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="max_prefill_tokens is a whole number"):
            Generator.from_pretrained(folder, "numpy", max_prefill_tokens=wrong)  # type: ignore[arg-type]
    assert long.free_rows == 8


def test_equal_prompts_are_computed_once_and_copied_when_they_are_whole(long: Generator) -> None:
    _, steps = filled(long, [PROMPT, tokens(20), PROMPT], 32)
    assert steps == [(32, 0, 0), (64, 0, 0), (96, 0, 0), (100, 20, 100)]


def until_amid(run: Run[Generation], steps: int = 3) -> None:
    """Drive a run to where a part of its prompts is in."""
    run.until(lambda run: run.step_count == steps)
    assert run.phase is prefill
    assert any(0 < cached < len(ids) for cached, ids in zip(run.context.cached, run.context.prompt_ids, strict=True))


def test_pause_signals_and_steps_take_effect_between_pieces(long: Generator) -> None:
    fed: list[int] = []
    reached, heard = threading.Event(), threading.Event()
    with long.start(PROMPT, OPEN, max_prefill_tokens=16) as run:

        def drive() -> None:
            for step in run:
                if step.phase == "prefill":
                    fed.append(step.outcome[0])
                    reached.set()
                    assert heard.wait(60)

        driving = threading.Thread(target=drive)
        driving.start()
        assert reached.wait(60)
        run.pause()
        heard.set()
        driving.join(60)
        assert (run.status, run.phase_name, fed) == (Status.PAUSED, "prefill", [16])
        assert run.guards == {"prompts_filled": False}
        step = run.step()
        assert step is not None
        assert (step.phase, step.target, step.outcome) == ("prefill", "prefill", (32,))
        run.signal("cancel")
        assert run.status is Status.CANCELLED
        assert long.result(run).output_ids == [[]]
    assert long.free_rows == 8


@pytest.mark.parametrize(("steps", "whole_rows"), [(3, set()), (4, {0, 2})])
@pytest.mark.parametrize("kv", ["copy", "recompute"])
def test_amid_a_prompt_a_run_is_saved_forked_and_goes_back(
    long: Generator, tmp_path: Path, kv: str, steps: int, whole_rows: set[int]
) -> None:
    x = [PROMPT, tokens(70, 1), PROMPT]
    whole, _ = filled(long, x, 10_000)
    expected = long.generate(x, OPEN)
    with long.start(x, OPEN, max_prefill_tokens=48, keep=True) as run:
        until_amid(run, steps)
        assert {row for row in range(3) if run.context.prompt_filled(row)} == whole_rows
        with pytest.raises(RequestError, match="row 1 has no logits yet"):
            long.candidates(run, 1)
        run.snapshot(tmp_path / "amid.snap", kv=kv)
        names = Snapshot.open(tmp_path / "amid.snap").arrays.keys()
        kept = {name for name in names if name.startswith("prompt_logits")}
        assert kept == ({f"prompt_logits.{row}" for row in whole_rows} if kv == "copy" else set())
        with long.resume(tmp_path / "amid.snap") as resumed:
            assert (resumed.phase_name, resumed.context.cached) == ("prefill", run.context.cached)
            resumed.until(sample)
            assert bits(resumed) == whole
            resumed.resume()
            assert long.result(resumed) == expected
        with run.fork() as fork:
            fork.resume()
            assert long.result(fork) == expected
        run.resume()
        assert long.result(run) == expected
        for place in range(run.step_count):  # also where one prompt is in, and another is not
            run.goto(place)
            if place < 5:
                run.until(sample)
                assert bits(run) == whole
            run.resume()
            assert long.result(run) == expected


def test_a_record_is_verified_played_and_gone_on_with_as_it_was_made(
    long: Generator, folder: Path, tmp_path: Path
) -> None:
    path, killed = tmp_path / "run.jsonl", tmp_path / "killed.jsonl"
    x = [PROMPT, tokens(70, 1)]
    writer = JournalWriter(path, every="step")
    with long.start(x, OPEN, max_prefill_tokens=32, journal=writer, digest_every=1) as run:
        until_amid(run)
        shutil.copy(path, killed)  # as a process leaves it that is killed here
        run.resume()
        expected = long.result(run)
    with chunks_of(CHUNK), Generator.from_pretrained(folder, "numpy", max_batch=8, capacity=CAPACITY,
                                                     max_prefill_tokens=7) as other:  # fmt: skip
        verified = replay(path, generator=other)
        verified.run.close()
        assert verified.divergence is None
        assert verified.verdict is not None
        assert verified.verdict.verified
        recovered = other.recover(killed)
        assert recovered.context.cached == [64, 0]
        recovered.resume()
        assert other.result(recovered) == expected
        assert replay(killed, generator=other).divergence is None
    played = replay(path, "play")
    assert played.divergence is None
    assert played.run.context.output_ids == expected.output_ids


@given(st.integers(1, 130), st.sampled_from([0, 3]))
@settings(max_examples=10, deadline=None)
def test_prompts_are_scored_in_pieces(long: Generator, bound: int, top: int) -> None:
    asked = [OPEN | {"prompt_logprobs": top}, OPEN, OPEN | {"prompt_logprobs": 1}]
    x = [PROMPT, tokens(40, 1), PROMPT]
    expected = long.generate(x, asked)
    with long.start(x, asked, max_prefill_tokens=bound) as run:
        run.until(sample)
        run.back()
        run.resume()
        found = long.result(run)
    assert (found.output_ids, found.prompt_logprobs[1]) == (expected.output_ids, None)
    for mine, its, most in ((found, expected, top), (found, expected, 1)):
        row = 0 if most == top else 2
        scored, wanted = mine.prompt_logprobs[row], its.prompt_logprobs[row]
        assert scored is not None
        assert wanted is not None
        assert (scored[0], len(scored)) == (None, 100)
        assert [one.token_id for one in scored[1:] if one] == PROMPT[1:]
        assert all(len(one.top) == most for one in scored if one)
        assert logprobs(scored) == pytest.approx(logprobs(wanted), abs=1e-4)
    plain = long.generate(x, OPEN)
    assert plain.output_ids == found.output_ids
    known = long.score(PROMPT[:1], PROMPT[1:])
    assert [one.logprob for one in known.tokens] == pytest.approx(logprobs(found.prompt_logprobs[0] or []), abs=1e-4)


def logprobs(found: list[TokenLogprob | None]) -> list[float]:
    return [one.logprob for one in found if one]
