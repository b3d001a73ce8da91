"""Generation through the door that applications use: whole, streamed, stepped, batched, concurrent, cancelled."""

import asyncio
import gc
import json
import threading
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from gate import Gate
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import CheckpointError, NoFreeRows
from phases import (
    FinishReason,
    Generation,
    GenerationRequest,
    Generator,
    Message,
    RequestError,
    RowRequest,
    SamplingParams,
)
from phases.errors import IgnoredSettings
from phases.generation import sample
from statemachine import JournalError, Phase, PhaseError, Status

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=())
PROMPTS = ["the quick fox", "Decode appends to it.", "x", "the lazy dog jumps"]


def test_the_phases_pass_in_the_order_of_the_reference(generator: Generator) -> None:
    run = generator.start("the fox", SamplingParams(temperature=0, max_new_tokens=3, stop_token_ids=()))
    run.start()
    loop = ["sample", "decode", "check_stop"]
    expected = ["tokenize", "prefill", *loop, *loop, "sample", "check_stop", "detokenize"]
    assert [step.phase for step in run.steps()] == expected
    assert run.status is Status.DONE
    assert run.context.output_texts == [generator.tokenizer.decode(run.context.output_ids[0])]


def test_a_decode_step_whose_result_would_be_thrown_away_is_never_computed(generator: Generator) -> None:
    long = generator.generate(PROMPTS[0], GREEDY).output_ids[0]
    stop = long[5]
    first = long.index(stop)
    params = [GREEDY, SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=(stop,))]
    run = generator.start([PROMPTS[0], PROMPTS[0]], params)
    decoded = []
    while not run.status.ended:
        if run.phase.name == "decode":
            decoded.append(run.context.unfinished())
        run.step()
    assert run.context.output_ids == [long, long[: first + 1]]
    assert run.context.finish_reasons == [FinishReason.LENGTH, FinishReason.STOP]
    assert decoded == [[0, 1]] * first + [[0]] * (11 - first)


def test_results_count_and_time(generator: Generator) -> None:
    result = generator.generate(
        PROMPTS[:2], [GREEDY, SamplingParams(temperature=0, max_new_tokens=1, stop_token_ids=())]
    )
    assert [len(ids) for ids in result.output_ids] == result.output_tokens == [12, 1]
    assert result.finish_reasons == ["length", "length"]
    assert result.prompt_tokens == [len(generator.tokenizer.encode(RowRequest(prompt=text))) for text in PROMPTS[:2]]
    assert result.time_to_first_token > 0
    assert 0 < result.time_per_token < 1
    with pytest.raises(ValueError, match="2 rows"):
        _ = result.text


@given(st.integers(1, 4), st.data())
@settings(max_examples=15, deadline=None)
def test_a_row_does_not_depend_on_who_shares_its_batch(generator: Generator, rows: int, data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(PROMPTS), min_size=rows, max_size=rows))
    params = [
        SamplingParams(
            temperature=data.draw(st.sampled_from([0, 0.7, 1.5])), top_k=data.draw(st.sampled_from([0, 5])),
            top_p=data.draw(st.sampled_from([1.0, 0.8])), seed=data.draw(st.integers(0, 99)),
            max_new_tokens=data.draw(st.integers(1, 10)),
        )
        for _ in texts
    ]  # fmt: skip
    together = generator.generate(texts, params)
    alone = [generator.generate(text, p).output_ids[0] for text, p in zip(texts, params, strict=True)]
    assert together.output_ids == alone


def test_two_runs_take_different_rows_and_do_not_disturb_each_other(generator: Generator) -> None:
    alone = [generator.generate(text, GREEDY).output_ids for text in PROMPTS[:2]]
    one, two = (generator.start(text, GREEDY) for text in PROMPTS[:2])
    assert not set(one.context.slots) & set(two.context.slots)
    while not (one.status.ended and two.status.ended):
        for run in (one, two):
            if not run.status.ended:
                run.step()
    assert [one.context.output_ids, two.context.output_ids] == alone


def test_two_threads_do_not_disturb_each_other(generator: Generator) -> None:
    alone = [generator.generate(text, GREEDY).output_ids for text in PROMPTS]
    found: dict[int, list] = {}

    def work(number: int) -> None:
        found[number] = [generator.generate(PROMPTS[number], GREEDY).output_ids for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [alone[number]] * 5 for number in range(4)}


def free(generator: Generator) -> int:
    return generator.engine.kv_cache.free


def test_rows_come_back_however_a_run_ends(generator: Generator) -> None:
    assert free(generator) == 4
    run = generator.start(PROMPTS[:3], GREEDY)
    assert free(generator) == 1
    with pytest.raises(NoFreeRows, match=r"2 rows were asked for, 1 of 4 are free"):
        generator.start(PROMPTS[:2])
    run.start()
    assert free(generator) == 4
    run = generator.start(PROMPTS[0])
    run.step()
    run.signal("cancel")
    assert free(generator) == 4
    with pytest.raises(RequestError):
        generator.generate("")
    assert free(generator) == 4
    run = generator.start(PROMPTS[0])
    del run
    gc.collect()
    assert free(generator) == 4


def test_a_cancelled_run_keeps_what_it_has(generator: Generator) -> None:
    whole = generator.generate([PROMPTS[0], PROMPTS[1]], GREEDY)
    run = generator.start([PROMPTS[0], PROMPTS[1]], [GREEDY, SamplingParams(temperature=0, max_new_tokens=2)])
    run.until(lambda run: len(run.context.output_ids[0]) == 5)
    run.signal("cancel")
    result = generator.result(run)
    assert result.finish_reasons == ["cancelled", "length"]
    assert result.output_ids == [whole.output_ids[0][:5], whole.output_ids[1][:2]]
    assert result.output_texts[0] == generator.tokenizer.decode(whole.output_ids[0][:5])


def test_streaming_gives_the_same_text_and_closing_it_frees_the_row(generator: Generator) -> None:
    params = SamplingParams(temperature=1.5, seed=5, max_new_tokens=40, stop_token_ids=())
    whole = generator.generate(PROMPTS[:2], params)
    texts = ["", ""]
    for piece in generator.stream(PROMPTS[:2], params):
        texts[piece.row] += piece
    assert texts == whole.output_texts
    stream = generator.stream(PROMPTS[0], params)
    next(stream)
    assert free(generator) == 3
    stream.close()
    assert free(generator) == 4


async def consume(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


def test_asyncio(generator: Generator) -> None:
    async def all_ways() -> None:
        whole = generator.generate(PROMPTS[0], GREEDY)
        results = await asyncio.gather(*(generator.agenerate(PROMPTS[0], GREEDY) for _ in range(4)))
        assert [result.output_ids for result in results] == [whole.output_ids] * 4
        assert "".join([piece async for piece in generator.astream(PROMPTS[0], GREEDY)]) == whole.text

    asyncio.run(all_ways())


ENDLESS = SamplingParams(temperature=0, max_new_tokens=10**6, stop_token_ids=())


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_a_cancelled_task_gives_its_rows_back(generator: Generator, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    gate = Gate(generator, monkeypatch)

    async def cancel_while_decoding() -> None:
        work = (
            generator.agenerate(PROMPTS, ENDLESS) if way == "generate" else consume(generator.astream(PROMPTS, ENDLESS))
        )
        task = asyncio.create_task(work)
        await asyncio.to_thread(gate.wait)
        assert free(generator) == 0
        task.cancel()
        gate.open(1000)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert free(generator) == 4

    asyncio.run(cancel_while_decoding())


def test_a_timeout_gives_the_row_back(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(generator, monkeypatch)

    async def bounded() -> None:
        loop = asyncio.get_running_loop()

        async with asyncio.timeout(None) as limit:
            generating = asyncio.create_task(generator.agenerate(PROMPTS[0], ENDLESS))
            await asyncio.to_thread(gate.wait)
            limit.reschedule(loop.time())
            loop.call_soon(gate.open, 1000)  # after the timeout, which is called sooner
            await generating

    with pytest.raises(TimeoutError):
        asyncio.run(bounded())
    assert free(generator) == 4


def test_a_users_phase_joins_by_insertion(chat_folder: Path) -> None:
    class ForbidTokens(Phase[Generation, None]):
        """Masks tokens in the logits before each draw."""

        def run(self, context: Generation) -> None:
            for slot in context.slots:
                logits = context.bound_engine.read_logits(slot)
                logits[:250] = float("-inf")
                context.bound_engine.write_logits(slot, logits)

    from phases import machine

    masked = machine.insert(ForbidTokens(), before="sample")
    with Generator.from_pretrained(chat_folder, machine=masked) as generator:
        result = generator.generate("the fox", SamplingParams(max_new_tokens=30, seed=1, stop_token_ids=()))
        assert min(result.output_ids[0]) >= 250


def test_every_form_of_request(generator: Generator) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    same = [
        "the fox",
        messages,
        [Message("user", "the fox")],
        [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]}],
        list(generator.tokenizer.encode(RowRequest(prompt="the fox"))),
        RowRequest(prompt="the fox"),
        GenerationRequest.of("the fox", GREEDY),
    ]
    results = [generator.generate(x, None if isinstance(x, GenerationRequest) else GREEDY) for x in same]
    assert len({json.dumps(result.output_ids) for result in results}) == 1
    batch = generator.generate(["the fox", messages, same[4]], GREEDY)
    assert batch.output_ids == results[0].output_ids * 3
    assert generator.generate([messages, messages], GREEDY).output_ids == results[0].output_ids * 2


BAD = [
    ([], "an empty|expected a prompt"),
    (7, "expected a prompt"),
    ([3.5], "a row is a prompt"),
    ([-1], "token ids start at 0"),
    ([True], "a row is"),
    ({"role": "user"}, "message"),
    ([{"content": "hi"}], 'a message is {"role"'),
    ([{"role": "user", "content": 3}], "content is a string"),
    ([{"role": "user", "content": [{"type": "audio"}]}], "a part of a message"),
    (["hi", []], "a row is"),
]


@pytest.mark.parametrize(("x", "message"), BAD)
def test_what_is_no_request_is_refused_and_takes_no_row(generator: Generator, x: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.start(x)
    assert free(generator) == 4


FAILING = [
    ("", "row 0 is empty"),
    ("   ", "row 0 is empty"),
    ([{"role": "user", "content": ""}], "row 0 is empty"),
    (["fine", "x" * 400], r"row 1 has \d+ prompt tokens, but the capacity is 128 .* shorten the prompt by \d+ tokens"),
    ([10**6], "row 0 holds token id 1000000, but the model's vocabulary ends at"),
    ([{"role": "wizard", "content": "x"}], "template refuses these messages.*role wizard is unknown"),
    (
        [{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}],
        "holds an image .*cat.png.*reads text only",
    ),
]


@pytest.mark.parametrize(("x", "message"), FAILING)
def test_a_request_that_tokenize_refuses(generator: Generator, x: object, message: str) -> None:
    async def astream() -> None:
        async for _ in generator.astream(x):
            pass

    ways = (
        lambda: generator.generate(x), lambda: list(generator.stream(x)), lambda: asyncio.run(generator.agenerate(x)),
        lambda: asyncio.run(astream()),
    )  # fmt: skip
    for way in ways:
        with pytest.raises(RequestError, match=message):
            way()
        assert free(generator) == 4
    with generator.start(x) as run, pytest.raises(PhaseError, match=r"in phase 'tokenize' at step 0") as failure:
        run.start()
    assert isinstance(failure.value.__cause__, RequestError)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 1.1},
     {"min_p": -0.1}, {"seed": -1}, {"seed": 2**64}, {"max_new_tokens": 0}, {"temperature": "hot"}, {"top_k": True},
     {"stop_token_ids": ("a",)}, {"stop_token_ids": (-1,)}],
)  # fmt: skip
def test_sampling_params_out_of_range_are_refused(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(RequestError, match=name):
        SamplingParams(**wrong)


def test_params_may_be_a_mapping_and_an_unknown_field_is_named(generator: Generator) -> None:
    plain = generator.generate("the fox", SamplingParams(temperature=0, max_new_tokens=4))
    assert generator.generate("the fox", {"temperature": 0, "max_new_tokens": 4}) == plain
    each = generator.generate(["the fox", "the fox"], [{"temperature": 0, "max_new_tokens": 4}, SamplingParams()])
    assert each.output_ids[0] == plain.output_ids[0]
    row = RowRequest(prompt="the fox", params={"temperature": 0, "max_new_tokens": 4})  # type: ignore[arg-type]
    assert generator.generate(row) == plain
    for wrong, message in (
        ({"temprature": 0}, "no field 'temprature', did you mean temperature"),
        ({"beams": 4}, "no field 'beams': expected temperature, top_k"),
        ([{"top_q": 1}], "no field 'top_q'"), ({1: 2}, "no field 1"), ("hot", "params are SamplingParams or a mapping"),
        ([3], "params are SamplingParams or a mapping"), ({"top_p": 7}, "top_p is a number above 0"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            generator.generate("the fox", wrong)  # type: ignore[arg-type]
    assert free(generator) == 4


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_no_token_ids(generator: Generator, kind: type) -> None:
    for x in (kind(b"the fox"), ["fine", kind(b"the fox")], kind(b"")):
        with pytest.raises(RequestError, match="not bytes"):
            generator.generate(x)
    with pytest.raises(RequestError, match="not bytes"):
        RowRequest(token_ids=kind(b"ab"))
    with pytest.raises(RequestError, match="not bytes"):
        SamplingParams(stop_token_ids=kind(b"ab"))


def test_a_run_that_rests_has_no_finish_reason_yet(generator: Generator) -> None:
    with generator.start(["the fox", "the fox"], [{"max_new_tokens": 1}, {"max_new_tokens": 9}]) as run:
        assert generator.result(run).finish_reasons == [None, None]
        run.until(lambda run: len(run.context.output_ids[1]) == 3)
        first = generator.result(run).finish_reasons[0]
        assert (first in ("length", "stop"), generator.result(run).finish_reasons[1]) == (True, None)
        run.signal("cancel")
        assert generator.result(run).finish_reasons == [first, "cancelled"]


NEUTRAL = {
    "repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "min_new_tokens": None, "max_length": 20,
    "early_stopping": False, "bad_words_ids": None, "transformers_version": "5.0.0", "bos_token_id": 1,
    "use_cache": True, "num_assistant_tokens": 5,
}  # fmt: skip


def test_what_a_checkpoint_asks_for_and_nobody_heeds_is_told_once_a_load(tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "eos_token_id": 3, **NEUTRAL}))
    with warnings.catch_warnings(), Generator.from_pretrained(folder, strict=True):
        warnings.simplefilter("error")
        Generator.from_pretrained(folder).close()
    asked = {**NEUTRAL, "typical_p": 0.9, "begin_suppress_tokens": [7], "num_beams": 4, "made_up": {"a": 1}}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    with pytest.warns(IgnoredSettings) as told:
        generator = Generator.from_pretrained(folder)
    [message] = [str(warning.message) for warning in told]
    assert "asks for num_beams 4, typical_p 0.9, begin_suppress_tokens [7], made_up {'a': 1}, which is not" in message
    assert told[0].filename == __file__
    with warnings.catch_warnings(), generator:
        warnings.simplefilter("error")
        generator.generate("the fox", {"max_new_tokens": 2})
    with pytest.raises(CheckpointError, match=r"typical_p 0\.9.* not honoured: take it out"):
        Generator.from_pretrained(folder, strict=True)


def test_the_output_ends_where_the_capacity_ends(generator: Generator) -> None:
    result = generator.generate("the fox", SamplingParams(temperature=0, max_new_tokens=10**9, stop_token_ids=()))
    assert result.prompt_tokens[0] + result.output_tokens[0] == 128
    assert result.finish_reasons == ["capacity"]


def test_what_is_unset_comes_from_the_checkpoint_then_from_the_defaults(tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path)
    with Generator.from_pretrained(folder) as generator:
        params = generator.start("x").context.request.requests[0].params
        assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 50, 1.0, 0.0)
        assert (params.max_new_tokens, params.stop_token_ids) == (128, (3,))
        assert params.seed != generator.start("x").context.request.requests[0].params.seed
        explicit = generator.start("x", SamplingParams(stop_token_ids=[])).context.request.requests[0].params
        assert explicit.stop_token_ids == ()
    config = {"temperature": 0.3, "top_k": 7, "top_p": 0.9, "max_new_tokens": 9, "eos_token_id": [3, 5]}
    (folder / "generation_config.json").write_text(json.dumps(config))
    with Generator.from_pretrained(folder) as generator:
        params = generator.start("x", SamplingParams(top_k=2)).context.request.requests[0].params
        assert (params.temperature, params.top_k, params.top_p) == (0.3, 2, 0.9)
        assert (params.max_new_tokens, params.stop_token_ids) == (9, (3, 5))
    penalties = {
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 2, "stop_strings": ["x"],
        "suppress_tokens": [7], "bad_words_ids": [[8], [3]], "sequence_bias": [[[9], 1.5]], "eos_token_id": 3,
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(penalties))
    with Generator.from_pretrained(folder, strict=True) as generator:
        params = generator.start("x").context.request.requests[0].params
        assert (params.repetition_penalty, params.no_repeat_ngram_size, params.min_new_tokens) == (1.3, 3, 2)
        assert (params.stop, params.forbidden_token_ids) == (("x",), (7, 8))
        assert params.logit_bias == ((9, 1.5),)
    several = {"sequence_bias": [[[9, 4], 1.5]], "bad_words_ids": [[8], [1, 2]]}
    (folder / "generation_config.json").write_text(json.dumps(several))
    with pytest.raises(CheckpointError, match=r"asks for sequence_bias .*, bad_words_ids .* not honoured"):
        Generator.from_pretrained(folder, strict=True)
    for broken in (
        '{"temperature": -3}', "[]", "{", '{"bad_words_ids": 5}', '{"suppress_tokens": "x"}', '{"stop_strings": [""]}',
        '{"sequence_bias": [[[1], "x"]]}',
    ):  # fmt: skip
        (folder / "generation_config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"generation_config.json (cannot be used|holds a list|is not JSON)"):
            Generator.from_pretrained(folder)
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    with Generator.from_pretrained(folder) as generator:
        assert generator.start("x").context.request.requests[0].params.temperature == 0


def test_without_a_template_a_prompt_is_continued_and_messages_are_refused(tmp_path: Path) -> None:
    with Generator.from_pretrained(write_chat_checkpoint(tmp_path, template=None)) as generator:
        run = generator.start("the fox", GREEDY)
        run.step()
        assert generator.tokenizer.decode(run.context.prompt_ids[0]) == "the fox"
        with pytest.raises(RequestError, match="has no chat template: give a prompt"):
            generator.generate([{"role": "user", "content": "hi"}])


def test_raw_prompts_bypass_the_template(generator: Generator) -> None:
    run = generator.start(RowRequest(prompt="the fox", raw=True))
    run.step()
    assert list(run.context.prompt_ids[0]) == list(generator.tokenizer.encode_continuation("the fox"))


def test_a_folder_without_tokenizer_and_a_closed_generator(tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path)
    generator = Generator.from_pretrained(folder)
    generator.close()
    generator.close()
    with pytest.raises(RuntimeError, match="closed"):
        generator.generate("x")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer can be loaded.*tokenizer.json"):
        Generator.from_pretrained(folder)


def test_a_refused_start_gives_its_rows_back_while_the_error_is_kept(generator: Generator, tmp_path: Path) -> None:
    taken = tmp_path / "taken.jsonl"
    taken.write_text("something")
    free = generator.free_rows
    errors = []
    for _ in range(6):  # more than there are rows
        with pytest.raises(JournalError) as error:
            generator.start("the fox", journal=taken)
        errors.append(error)
    assert generator.free_rows == free
    assert len(errors) == 6


def test_candidates_are_what_sample_draws_from(generator: Generator) -> None:
    run = generator.start(list(PROMPTS[:2]), SamplingParams(temperature=0, max_new_tokens=6))
    with pytest.raises(RequestError, match="no logits yet: Prefill makes the first"):
        generator.candidates(run)
    run.until(sample)
    expected = []
    while not run.status.ended:
        if run.phase is sample:
            rows = [generator.candidates(run, row=row, count=3) for row in run.context.live]
            expected.append([row[0].token_id for row in rows])
            for token_id, text, probability in rows[0]:
                assert text == generator.tokenizer.decode_token(token_id)
                assert 0 < probability < 1
            assert [c.probability for c in rows[0]] == sorted((c.probability for c in rows[0]), reverse=True)
        run.step()
    assert expected == [list(tokens) for tokens in zip(*run.context.output_ids, strict=True)]
    with pytest.raises(RequestError, match="row 0 has no next token"):
        generator.candidates(run)


def test_candidates_of_a_run_that_went_back_are_those_it_had(generator: Generator) -> None:
    with generator.start("the fox", SamplingParams(seed=3, max_new_tokens=9)) as run:
        run.until(sample)
        first = generator.candidates(run)
        total = sum(candidate.probability for candidate in generator.candidates(run, count=10**6))
        assert total == pytest.approx(1)
        before = run.step_count
        run.step()
        run.until(sample)
        later = generator.candidates(run, count=5)
        run.step()
        run.back(1)
        assert [c.token_id for c in generator.candidates(run, count=5)] == [c.token_id for c in later]
        run.goto(before)
        assert generator.candidates(run) == first
        with pytest.raises(RequestError, match="rows 0 to 0, but row 1"):
            generator.candidates(run, row=1)


def test_free_rows_are_counted(generator: Generator) -> None:
    free = generator.free_rows
    with generator.start(list(PROMPTS[:2])):
        assert generator.free_rows == free - 2
    assert generator.free_rows == free


def test_phases_offers_every_error_and_shows_its_public_names_only() -> None:
    import gpu
    import phases
    import statemachine

    assert dir(phases) == sorted(phases.__all__)
    assert dir(statemachine) == sorted(statemachine.__all__)
    for name in phases.__all__:
        assert getattr(phases, name).__class__ is not None
    assert phases.NoFreeRows is gpu.NoFreeRows
    assert phases.JournalError is statemachine.JournalError
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = phases.Nothing
