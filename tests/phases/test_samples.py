"""A prompt that is continued several times is computed once, and each continuation is what it would be alone."""

from pathlib import Path
from typing import Any

import pytest
from counting_prefills import CountingPrefills

from gpu import NoFreeRows
from phases import Generator, RequestError, SamplingParams
from phases.replay import replay

PROMPT = "the quick fox"
DRAWN = SamplingParams(temperature=1.2, seed=2**64 - 1, max_new_tokens=12, stop_token_ids=())


@pytest.fixture
def counting(generator: Generator) -> Generator:
    engine: Any = CountingPrefills(generator.engine)
    return Generator(engine, generator.tokenizer, defaults=generator.defaults, folder=generator.folder)


def alone(generator: Generator, count: int) -> list[list[int]]:
    seeds = [(2**64 - 1 + number) % 2**64 for number in range(count)]
    return [generator.generate(PROMPT, SamplingParams(seed=seed).over(DRAWN)).output_ids[0] for seed in seeds]


def test_each_continuation_is_what_its_seed_gives_alone(generator: Generator, counting: Generator) -> None:
    result = counting.generate(PROMPT, SamplingParams(n=3).over(DRAWN))
    assert counting.engine.prefilled == 1  # type: ignore[attr-defined]
    assert result.output_ids == alone(generator, 3)
    assert len({tuple(ids) for ids in result.output_ids}) == 3
    assert result.prompt_tokens == [result.prompt_tokens[0]] * 3


def test_rows_of_a_batch_stand_one_after_the_other(generator: Generator) -> None:
    greedy = SamplingParams(temperature=0, max_new_tokens=12)
    result = generator.generate(["x", PROMPT], [greedy, SamplingParams(n=3).over(DRAWN)])
    assert result.output_ids == [generator.generate("x", greedy).output_ids[0], *alone(generator, 3)]


def test_without_a_seed_they_differ(generator: Generator) -> None:
    result = generator.generate(PROMPT, SamplingParams(temperature=1.5, max_new_tokens=12, n=4, stop_token_ids=()))
    assert len({tuple(ids) for ids in result.output_ids}) == 4


@pytest.mark.parametrize("options", [{}, {"history": False, "kv": "recompute"}])
def test_they_are_recorded_and_survive_pause_rewind_and_snapshot(
    generator: Generator, counting: Generator, tmp_path: Path, options: dict[str, Any]
) -> None:
    params = SamplingParams(n=2, repetition_penalty=1.4, logprobs=1).over(DRAWN)
    expected = generator.generate(PROMPT, params)
    run = generator.start(PROMPT, params, journal=tmp_path / "run.jsonl", keep=True)
    run.until(lambda run: len(run.context.output_ids[0]) == 5)
    run.snapshot(tmp_path / "run.snap", **options)
    resumed = counting.resume(tmp_path / "run.snap")
    resumed.resume()
    assert counting.result(resumed).output_ids == expected.output_ids
    assert counting.engine.prefilled == (3 if options else 0)  # type: ignore[attr-defined]  # the prompt, both outputs
    run.back(8)
    run.resume()
    assert generator.result(run) == expected
    run.close()
    done = replay(tmp_path / "run.jsonl", generator=generator)
    assert done.divergence is None
    assert len(done.run.context.request.requests) == 2
    done.run.close()


def test_what_cannot_be_is_refused(generator: Generator) -> None:
    with pytest.raises(NoFreeRows, match="5 rows were asked for, 4 of 4 are free"):
        generator.generate(PROMPT, {"n": 5})
    with pytest.raises(RequestError, match="n is a whole number from 1 to 4096"):
        SamplingParams(n=0)
    with generator.start(PROMPT) as run:
        run.step()
        for late in ({"n": 2}, {"prompt_logprobs": 0}):
            with pytest.raises(RequestError, match="expected some of temperature, top_k"):
                run.edit("sampling", **late)
