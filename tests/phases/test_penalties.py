"""Penalties, biases and masks: the tokens of Hugging Face's `generate`, whatever is done to a run on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phases import Generation, Generator, RequestError, SamplingParams
from phases.replay import replay
from statemachine import Run

OPEN: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40, "stop_token_ids": ()}
PROMPT = "the quick fox"
LOOKING_BACK: dict[str, Any] = {
    "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.7, "no_repeat_ngram_size": 2,
    "min_new_tokens": 5, "logit_bias": {7: 0.8, 90: -2.0}, "forbidden_token_ids": (11, 12),
}  # fmt: skip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs(chat_folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("params", "arguments"),
    [
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"repetition_penalty": 0.7}, {"repetition_penalty": 0.7}),
        ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"logit_bias": {7: 3.0, 200: 1.5}}, {"sequence_bias": [[[7], 3.0], [[200], 1.5]]}),
        ({"forbidden_token_ids": range(40, 200)}, {"suppress_tokens": list(range(40, 200))}),
        (
            {"allowed_token_ids": range(40, 90)},
            {"prefix_allowed_tokens_fn": lambda row, ids: list(range(40, 90))},
        ),
        (
            {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "logit_bias": {7: 3.0}, "forbidden_token_ids": [9]},
            {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "sequence_bias": [[[7], 3.0]],
             "suppress_tokens": [9]},
        ),
    ],
)  # fmt: skip
def test_tokens_are_those_of_hugging_face(
    generator: Generator, theirs: Any, params: dict[str, Any], arguments: dict[str, Any]
) -> None:
    result = generator.generate(PROMPT, SamplingParams(**OPEN, **params))
    assert result.output_ids != generator.generate(PROMPT, OPEN).output_ids
    run = generator.start(PROMPT, OPEN)
    run.step()
    prompt = list(run.context.prompt_ids[0])
    run.close()
    expected = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=40,
        eos_token_id=None, pad_token_id=0, **arguments,
    )  # fmt: skip
    assert result.output_ids[0] == expected[0, len(prompt) :].tolist()


def test_no_stop_token_is_drawn_before_there_are_enough_tokens(generator: Generator, theirs: Any) -> None:
    likely = generator.generate(PROMPT, OPEN).output_ids[0][0]
    stops = SamplingParams(temperature=0, max_new_tokens=20, stop_token_ids=(likely,), logit_bias={likely: 50.0})
    assert generator.generate(PROMPT, stops).output_ids == [[likely]]
    for count in (1, 6):
        result = generator.generate(PROMPT, SamplingParams(min_new_tokens=count).over(stops))
        assert (result.output_tokens, result.finish_reasons) == ([count + 1], ["stop"])
        assert likely not in result.output_ids[0][:-1]


def test_no_stop_string_ends_a_row_before_there_are_enough_tokens(generator: Generator) -> None:
    whole = generator.generate(PROMPT, OPEN)
    first = generator.tokenizer.decode(whole.output_ids[0][:1])
    params = SamplingParams(**OPEN, stop=first)
    assert generator.generate(PROMPT, params).output_tokens == [1]
    later = generator.generate(PROMPT, SamplingParams(min_new_tokens=3).over(params))
    assert later.output_tokens[0] >= 3
    assert later.output_ids[0] == whole.output_ids[0][: later.output_tokens[0]]


def test_a_presence_penalty_looks_at_the_output_alone(generator: Generator) -> None:
    """A huge one lets nothing come twice, but what the prompt holds comes as before."""
    run = generator.start(PROMPT, OPEN)
    run.step()
    prompt = run.context.prompt_ids[0]
    run.close()
    params = SamplingParams(**OPEN, presence_penalty=1e4, allowed_token_ids=prompt)
    output = generator.generate(PROMPT, SamplingParams(max_new_tokens=len(set(prompt))).over(params)).output_ids[0]
    assert sorted(output) == sorted(set(prompt))


def steps(run: Run[Generation], generator: Generator, tmp_path: Path) -> None:
    while not run.status.ended:
        run.step()


def rewinds(run: Run[Generation], generator: Generator, tmp_path: Path) -> None:
    for count in (5, 9, 14):
        run.until(lambda run, count=count: len(run.context.output_ids[0]) == count)
        run.back(count)
    run.resume()


def is_edited_and_goes_back(run: Run[Generation], generator: Generator, tmp_path: Path) -> None:
    run.until(lambda run: len(run.context.output_ids[0]) == 6)
    place = run.step_count
    run.edit("sampling", repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, no_repeat_ngram_size=0)
    run.until(lambda run: len(run.context.output_ids[0]) == 9)
    run.goto(place)
    run.edit("sampling", **{name: LOOKING_BACK[name] for name in list(LOOKING_BACK)[:4]})
    run.resume()


@pytest.mark.parametrize("way", [steps, rewinds, is_edited_and_goes_back])
def test_whatever_is_done_on_the_way_the_tokens_are_the_same(
    generator: Generator, tmp_path: Path, way: Callable[..., None]
) -> None:
    params = SamplingParams(temperature=0.9, seed=4, max_new_tokens=30, stop_token_ids=(), **LOOKING_BACK)
    expected = generator.generate([PROMPT, "x"], params)
    run = generator.start([PROMPT, "x"], params, keep=True)
    way(run, generator, tmp_path)
    assert generator.result(run) == expected
    run.close()


@pytest.mark.parametrize("options", [{}, {"history": False, "kv": "recompute"}])
def test_they_are_recorded_and_survive_fork_and_snapshot(
    generator: Generator, tmp_path: Path, options: dict[str, Any]
) -> None:
    params = SamplingParams(temperature=0.9, seed=4, max_new_tokens=30, stop_token_ids=(), **LOOKING_BACK)
    expected = generator.generate(PROMPT, params)
    run = generator.start(PROMPT, params, journal=tmp_path / "run.jsonl")
    run.until(lambda run: len(run.context.output_ids[0]) == 8)
    run.snapshot(tmp_path / "run.snap", **options)
    for other in (run.fork(), generator.resume(tmp_path / "run.snap")):
        other.resume()
        assert generator.result(other).output_ids == expected.output_ids
    run.resume()
    assert generator.result(run) == expected
    done = replay(tmp_path / "run.jsonl", generator=generator)
    assert done.divergence is None
    done.run.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty is a number from 0.0001 to 10000"),
        ({"presence_penalty": float("nan")}, "presence_penalty is a number from -10000"),
        ({"frequency_penalty": "much"}, "frequency_penalty is a number from -10000"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is a whole number"),
        ({"min_new_tokens": 1.5}, "min_new_tokens is a whole number of at least 0"),
        ({"logit_bias": {3: float("inf")}}, "forbidden_token_ids keeps a token out"),
        ({"logit_bias": {-3: 1}}, "token ids from 0 on"),
        ({"logit_bias": [3]}, "logit_bias is a number for each token id"),
        ({"logit_bias": {"a": 3}}, "logit_bias is a number for each token id"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids holds -1"),
        ({"forbidden_token_ids": b"ab"}, "not bytes"),
        ({"forbidden_token_ids": [10**6]}, "forbidden_token_ids of row 0 names token id 1000000, but the model's"),
        ({"logit_bias": {10**6: 1}}, "logit_bias of row 0 names token id 1000000"),
        ({"min_new_tokens": 1, "stop_token_ids": range(65)}, "65 stop tokens, but min_new_tokens can hold back 64"),
    ],
)
def test_what_makes_no_sense_is_refused(generator: Generator, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.generate(PROMPT, given)
    assert generator.engine.kv_cache.free == 4


def test_an_edit_that_names_a_token_there_is_not_is_refused(generator: Generator) -> None:
    run = generator.start(PROMPT, OPEN)
    run.step()
    with pytest.raises(RequestError, match="allowed_token_ids of row 0 names token id 1000000"):
        run.edit("sampling", allowed_token_ids=[10**6])
    run.close()
