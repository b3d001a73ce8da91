"""An engine under the machine: paused, saved, taken anywhere in its past, a run's tokens and bits stay the same."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asynchronous_engine import AsynchronousEngine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gpu import Engine
from phases import Generator, RequestError, SamplingParams
from phases.context import Generation
from phases.debugger.distribution import Distribution, NoDistribution, distribution
from phases.generation import machine, sample
from phases.prompt_cache import PromptCache
from phases.replay import replay
from phases.resting_rows import RestingRows
from phases.tokenizer import Tokenizer
from statemachine import Run
from statemachine.testing import machine_rules, run_rules

pytestmark = pytest.mark.slow

PROMPTS = ["the quick", "Prefill fills the cache"]
DRAWN = [
    SamplingParams(temperature=1.0, seed=3, max_new_tokens=6, stop_token_ids=()),
    SamplingParams(temperature=0.8, top_k=20, seed=4, max_new_tokens=4, stop_token_ids=()),
]


def started(generator: Generator, **options: Any) -> Run[Generation]:
    return generator.start(PROMPTS, DRAWN, keep=True, **options)


def at(generator: Generator, place: int, **options: Any) -> Run[Generation]:
    """A run that rests after so many steps."""
    run = started(generator, **options)
    while run.step_count < place:
        run.step()
    return run


@pytest.fixture
def places(generator: Generator, stride: int) -> range:
    """Every place where a run rests before its end, or many of them."""
    with started(generator) as run:
        run.start()
        return range(0, run.step_count, stride)


def rest(run: Run[Generation]) -> list[list[int]]:
    """Drive a run on to its end; its tokens."""
    with run:
        if run.status == "ready":
            run.start()
        elif not run.status.ended:
            run.resume()
        return run.context.output_ids


def test_tokens_are_those_of_the_reference(generator: Generator, reference: Generator) -> None:
    assert generator.generate(PROMPTS, DRAWN).output_ids == reference.generate(PROMPTS, DRAWN).output_ids


def test_a_prompt_cache_changes_no_bit_and_takes_in_what_a_prefill_would_leave(
    load: Callable[..., Engine], chat_folder: Path
) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_new_tokens=14, stop_token_ids=())
    told = tuple(5 + place * 7 % 80 for place in range(113))
    engine = load(chat_folder, max_batch=2)
    cache, resting = PromptCache(engine, limit=10**9), RestingRows(engine)
    tokenizer = Tokenizer.from_pretrained(chat_folder)
    generators = [
        Generator(engine, tokenizer, folder=chat_folder, prompt_cache=kept, max_prefill_tokens=bound)
        for kept, bound in ((None, 10**6), (cache, 10**6), (cache, 70), (resting, 10**6), (resting, 70))
    ]
    output = generators[1].generate(told[:100], params).output_ids[0]
    if engine.prefill_chunk == 1:  # what was drawn is kept, too
        told = (*told[:100], *output[:13])
        assert cache.size == 64 * engine.model.kv_numbers * 4
    found = []
    for generator in generators:
        if generator is generators[3]:
            generator.generate(told[:100], params)  # in a row that rests then
        with generator.start(told, params) as run:
            bits = [engine.read_logits(run.context.slots[0]).tobytes() for step in run if step.phase == "decode"]
        found.append((generator.result(run), bits))
        expected = 0 if generator.prompt_cache is None else min(cache.block, 112) // cache.block * cache.block
        if generator.prompt_cache is resting:
            expected = 112 // resting.block * resting.block
        assert found[-1][0].reused_tokens == [expected]
    assert found == [found[0]] * 5


def test_decode_steps_leave_the_bits_of_a_prefill_where_a_prompt_may_be_cut_anywhere(
    load: Callable[..., Engine], chat_folder: Path
) -> None:
    engine = load(chat_folder, max_batch=2)
    if engine.prefill_chunk != 1:
        pytest.skip("prompts are cut at more than one token, so nothing relies on it")
    told = [5 + place * 7 % 80 for place in range(90)]
    whole, stepped = engine.kv_cache.acquire(2)
    engine.write_prompt(whole, told)
    engine.write_prompt(stepped, told[:50])
    engine.prefill([whole, stepped])
    for token in told[50:]:
        engine.write_token(stepped, token)
        engine.decode([stepped])
    assert engine.export_kv(stepped, 0, 90).tobytes() == engine.export_kv(whole, 0, 90).tobytes()


ALL_THAT_CAN_BE_ASKED = [
    SamplingParams(
        temperature=1.0, seed=7, max_new_tokens=9, stop_token_ids=(), repetition_penalty=1.4, presence_penalty=0.4,
        frequency_penalty=0.3, no_repeat_ngram_size=2, logit_bias={9: 2.0}, forbidden_token_ids=(11, 12), logprobs=2,
        prompt_logprobs=1, n=2,
    ),
    SamplingParams(
        temperature=0.8, seed=3, max_new_tokens=9, stop_token_ids=(40, 41), min_new_tokens=3, stop="e",
        allowed_token_ids=range(20, 120),  # type: ignore[arg-type]
    ),
]  # fmt: skip


def test_all_that_can_be_asked_for_is_as_on_the_reference(generator: Generator, reference: Generator) -> None:
    here, there = (one.generate(PROMPTS[:2], ALL_THAT_CAN_BE_ASKED) for one in (generator, reference))
    assert here.output_ids == there.output_ids
    assert (here.output_texts, here.finish_reasons) == (there.output_texts, there.finish_reasons)
    for mine, its in ((here.logprobs, there.logprobs), (here.prompt_logprobs, there.prompt_logprobs)):
        assert [row is None for row in mine] == [row is None for row in its] == [False, False, True]
        for row, expected in zip(mine[:2], its[:2], strict=True):
            found, wanted = (np.array([one.logprob for one in of or () if one]) for of in (row, expected))
            assert np.allclose(found, wanted, atol=0.02)  # an engine may round weights


def test_a_run_that_asks_for_all_goes_back_forks_and_is_verified(
    generator: Generator, stride: int, tmp_path: Path
) -> None:
    whole = generator.generate(PROMPTS[:2], ALL_THAT_CAN_BE_ASKED)
    for place in range(3, 24, max(4, 2 * stride)):
        path = tmp_path / f"{place}.jsonl"
        run = generator.start(PROMPTS[:2], ALL_THAT_CAN_BE_ASKED, journal=path, keep=True)
        run.start()
        run.goto(min(place, run.step_count))
        with run.fork() as fork:
            rest(fork)
            assert generator.result(fork) == whole, place
        rest(run)
        assert generator.result(run) == whole, place
        run.close()
        verified = replay(path, generator=generator)
        verified.run.close()
        assert verified.divergence is None, verified.divergence.report()


def test_prompts_in_pieces_come_to_the_bits_of_whole_ones(generator: Generator) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    found = []
    for bound in (1, 5, 1000):
        with started(generator, max_prefill_tokens=bound) as run:
            run.until(sample)
            found.append([generator.engine.read_logits(slot).tobytes() for slot in run.context.slots])
            run.resume()
            assert run.context.output_ids == whole, bound
    assert found == [found[0]] * 3


@pytest.mark.parametrize("place", [1, 2, 5, 9])
def test_a_row_that_is_cancelled_leaves_the_others_to_the_bit(generator: Generator, tmp_path: Path, place: int) -> None:
    prompts = ["fox", *PROMPTS]
    params = [replace(DRAWN[0], logprobs=1), *(replace(params, logprobs=1) for params in DRAWN)]
    whole = generator.generate(prompts, params)
    path = tmp_path / "run.jsonl"
    with generator.start(prompts, params, journal=path) as run:
        while run.step_count < place:
            run.step()
        generator.cancel_row(run, 1)
        run.resume()
        result = generator.result(run)
    kept = result.output_tokens[1]
    assert result.finish_reasons == ["length", "cancelled", "length"]
    assert result.output_ids == [whole.output_ids[0], whole.output_ids[1][:kept], whole.output_ids[2]]
    assert (result.logprobs[0], result.logprobs[2]) == (whole.logprobs[0], whole.logprobs[2])
    verified = replay(path, generator=generator)
    verified.run.close()
    assert verified.divergence is None


def test_a_row_that_has_nothing_to_draw_from_fails_alone(generator: Generator, tmp_path: Path) -> None:
    nothing = SamplingParams(allowed_token_ids=(40,), forbidden_token_ids=(40,))
    path = tmp_path / "run.jsonl"
    with generator.start([*PROMPTS, "fox"], [DRAWN[0], nothing, DRAWN[1]], journal=path) as run:
        run.start()
        result = generator.result(run)
    alone = generator.generate([PROMPTS[0], "fox"], DRAWN).output_ids
    assert result.finish_reasons == ["length", "failed", "length"]
    assert result.output_ids == [alone[0], [], alone[1]]
    assert "nothing but -inf" in (result.errors[1] or "")
    verified = replay(path, generator=generator)
    verified.run.close()
    assert verified.divergence is None


def test_a_run_goes_on_from_every_place_where_it_rests(generator: Generator, places: range) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    for place in places:
        assert rest(at(generator, place)) == whole, place


def test_a_run_goes_back_to_every_place_and_verifies_to_the_bit(
    generator: Generator, places: range, tmp_path: Path
) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    for place in places:
        path = tmp_path / f"{place}.jsonl"
        run = started(generator, journal=path, digest_every=1)
        run.start()
        run.goto(place)
        assert rest(run) == whole, place
        verified = replay(path, generator=generator)
        verified.run.close()
        assert verified.divergence is None, verified.divergence.report()


def test_back_and_ahead_again(generator: Generator, places: range) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    for place in places:
        run = at(generator, place)
        for back in (place // 2, 0, place):
            run.goto(back)
        assert rest(run) == whole, place


def test_a_fork_at_every_place_has_the_same_future_and_disturbs_nobody(
    generator: Generator, stride: int, poison: Callable[[Engine], None]
) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    with started(generator) as run:
        run.until(lambda run: run.step_count == 12)
        for place in range(0, 13, stride):
            poison(generator.engine)
            assert rest(run.fork(place)) == whole, place
        run.resume()
        assert run.context.output_ids == whole


@pytest.mark.parametrize("kv", ["copy", "recompute"])
def test_a_snapshot_of_every_place_goes_on_in_its_engine_and_in_the_reference(
    generator: Generator,
    reference: Generator,
    places: range,
    tmp_path: Path,
    kv: str,
    poison: Callable[[Engine], None],
) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    for place in places:
        for source, target in ((generator, generator), (generator, reference), (reference, generator)):
            path = tmp_path / f"{place}.snapshot"
            with at(source, place) as run:
                run.snapshot(path, kv=kv)
            poison(target.engine)
            assert rest(target.resume(path)) == whole, (place, kv)
    for each in (generator, reference):
        assert each.engine.kv_cache.free == 8


@pytest.mark.parametrize("kv", ["copy", "recompute"])
def test_what_was_resumed_goes_back_to_its_prompt_and_verifies(
    generator: Generator, tmp_path: Path, kv: str, poison: Callable[[Engine], None]
) -> None:
    with at(generator, 12) as run:
        run.snapshot(tmp_path / "snapshot", kv=kv)
    poison(generator.engine)
    resumed = generator.resume(tmp_path / "snapshot", journal=tmp_path / "journal.jsonl", keep=True)
    resumed.digest_every = 1
    resumed.goto(2)  # where Prefill has left its logits
    rest(resumed)
    verified = replay(tmp_path / "journal.jsonl", generator=generator)
    verified.run.close()
    assert verified.divergence is None


def test_a_record_is_gone_on_with_from_every_place(
    generator: Generator, places: range, tmp_path: Path, poison: Callable[[Engine], None]
) -> None:
    whole = rest(started(generator, journal=tmp_path / "journal.jsonl"))
    for place in places:
        poison(generator.engine)
        forked = replay(tmp_path / "journal.jsonl", "fork", generator=generator, at=place)
        assert forked.divergence is None
        assert rest(forked.run) == whole, place


def test_edits_at_every_place_come_to_the_same_as_in_the_reference(
    generator: Generator, reference: Generator, stride: int
) -> None:
    edits: list[tuple[str, dict[str, Any]]] = [
        ("sampling", {"row": 0, "temperature": 0.0}),
        ("force", {"row": 1, "tokens": [7, 8]}),
        ("append", {"row": 0, "text": " fox"}),
    ]
    for place in range(0, 12, stride):
        for name, arguments in edits:
            found = []
            for each in (generator, reference):
                run = at(each, place)
                if run.context.live == (0, 1):
                    run.edit(name, **arguments)
                run.back(min(3, run.step_count))
                run.goto(run.recorded_steps)
                found.append(rest(run))
            assert found[0] == found[1], (place, name)


def test_a_token_that_is_drawn_is_not_drawn_otherwise_by_a_later_edit(generator: Generator) -> None:
    params = SamplingParams(temperature=1.5, seed=1, max_new_tokens=4, stop_token_ids=())
    whole = generator.generate("the quick", params).output_ids[0]
    greedy = generator.generate("the quick", SamplingParams(temperature=0, max_new_tokens=1)).output_ids[0]
    assert whole[:1] != greedy
    for phase in ("decode", "check_stop"):
        run = generator.start("the quick", params, keep=True)
        run.until(machine.phases[phase])
        run.edit("sampling", temperature=0)
        assert rest(run)[0][0] == whole[0]


def test_the_debugger_sees_the_same_logits_wherever_it_comes_from(generator: Generator, stride: int) -> None:
    def seen(run: Run[Generation]) -> Distribution | str:
        try:
            return distribution(run.context, 0)
        except NoDistribution as error:
            return str(error)

    last = at(generator, 15)
    for place in (*range(15, 1, -stride), *range(2, 16, stride)):
        last.goto(place)
        with at(generator, place) as run:
            assert seen(last) == seen(run), place
    assert rest(last) == generator.generate(PROMPTS, DRAWN).output_ids


class Interrupted:
    """An engine whose next decode or sample is interrupted, before its work or after it."""

    def __init__(self, engine: Engine, verb: str, *, after: bool) -> None:
        self._engine, self._verb, self._after = engine, verb, after

    def __getattr__(self, name: str) -> Any:
        return self._interrupted if name == self._verb else getattr(self._engine, name)

    def _interrupted(self, rows: Sequence[int]) -> None:
        if self._after:
            getattr(self._engine, self._verb)(rows)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", ["decode", "sample"])
def test_fresh_logits_that_were_interrupted_change_nothing(
    generator: Generator, stride: int, verb: str, after: bool
) -> None:
    whole = generator.generate(PROMPTS, DRAWN).output_ids
    for place in range(2, 14, stride):
        run = at(generator, 14)
        run.goto(place)
        engine: Any = Interrupted(generator.engine, verb, after=after)
        run.context.engine = engine
        with suppress(KeyboardInterrupt):
            run.context.fresh_logits()
        run.context.engine = generator.engine
        assert rest(run) == whole, place


def test_generation_keeps_the_rules(generator: Generator, stands_in: bool) -> None:
    contexts = st.builds(
        lambda count, params: generator.start(PROMPTS[:count], params).context,
        st.integers(1, 2),
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 1.3]),
            seed=st.integers(0, 3),
            max_new_tokens=st.integers(1, 6),
            repetition_penalty=st.sampled_from([1.0, 1.5]),
            presence_penalty=st.sampled_from([0.0, 0.5]),
            logit_bias=st.sampled_from([(), ((7, 2.0),)]),
        ),
    )
    row = st.integers(0, 1)
    edits = {
        "sampling": st.fixed_dictionaries(
            {"row": row},
            optional={"temperature": st.sampled_from([0.0, 2.0]), "repetition_penalty": st.sampled_from([1.0, 2.0])},
        ).filter(lambda given: len(given) > 1),
        "force": st.fixed_dictionaries({"row": row, "tokens": st.lists(st.integers(0, 200), min_size=1, max_size=3)}),
        "append": st.fixed_dictionaries({"row": row, "text": st.sampled_from(["", "fox", " jumps over"])}),
    }
    spare = generator.start("fox")
    spare.close()
    run_rules(
        machine_rules(
            machine,
            contexts,
            resources=spare.resources,
            edits=edits,
            signals={"cancel_row": st.integers(0, 1)},
            may_raise=RequestError,
            pinned=lambda context: {buffer.name: buffer.address for buffer in context.bound_engine.memory()},
        ),
        settings(
            max_examples=4 if stands_in else 12, stateful_step_count=14, deadline=None, derandomize=True,
            database=None, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("load", ["asynchronous"], indirect=True)
def test_a_token_is_waited_for_once(load: Callable[..., Engine], generator: Generator) -> None:
    """Of the phases only CheckStop waits; whatever read memory before would have found nothing there."""
    engine = generator.engine
    assert isinstance(engine, AsynchronousEngine)
    before = engine.waits
    result = generator.generate(PROMPTS, DRAWN)
    assert engine.waits - before == max(result.output_tokens)
    with pytest.raises(AssertionError, match="cannot be indexed by the host"):
        _ = engine.buffers
    [row] = engine.kv_cache.acquire(1)
    engine.write_logits(row, np.zeros(engine.model.vocab, np.float32))
    assert not engine.read_logits(row).any()
    engine.write_prompt(row, [1, 2])
    engine.prefill([row])
    assert engine.kv_cache.length(row) == 2
    assert not engine._device.buffers.logits[row].any()
    assert engine.read_logits(row).any()
