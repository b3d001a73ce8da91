"""Phases that adjust logits, on every engine: wherever a run has been, a token is drawn from what they left."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asynchronous_engine import AsynchronousEngine

from gpu import Engine
from phases import Constraint, Generation, Generator, LogitsPhase, SamplingParams
from phases.debugger.distribution import Distribution, NoDistribution, distribution
from phases.generation import machine
from phases.replay import replay
from phases.tokenizer import Tokenizer
from statemachine import Run

pytestmark = pytest.mark.slow

REGEX = "[a-e]{1,2}(fox|7)"
PROMPTS = ["the quick", "Prefill fills the cache"]
PARAMS = [
    SamplingParams(constraint=Constraint(regex=REGEX), temperature=1.5, seed=3, max_new_tokens=12),
    SamplingParams(temperature=0.8, top_k=20, seed=4, max_new_tokens=3, stop_token_ids=()),
]


class Sway(LogitsPhase):
    """Adds to the logits what it would be wrong to add twice, and what differs from token to token."""

    def adjust(self, context: Generation, row: int, logits: np.ndarray) -> None:
        tokens = [*context.prompt_ids[row], *context.output_ids[row]]
        logits += np.random.default_rng(tokens).normal(0, 2, logits.shape).astype(np.float32)


@pytest.fixture
def generator(load: Callable[..., Engine], chat_folder: Path) -> Generator:
    engine = load(chat_folder, max_batch=8)
    defaults = SamplingParams(stop_token_ids=engine.model.eos_ids)
    swayed = machine.insert(Sway(), before="sample")
    tokenizer = Tokenizer.from_pretrained(chat_folder)
    return Generator(engine, tokenizer, defaults=defaults, machine=swayed, folder=chat_folder)


def started(generator: Generator, **options: Any) -> Run[Generation]:
    return generator.start(PROMPTS, PARAMS, keep=True, **options)


def at(generator: Generator, place: int, **options: Any) -> Run[Generation]:
    run = started(generator, **options)
    while run.step_count < place:
        run.step()
    return run


def back_at(generator: Generator, place: int, last: int) -> Run[Generation]:
    """A run that has been further, so that its logits are made anew."""
    run = at(generator, min(place + 5, last))
    run.goto(place)
    return run


def rest(run: Run[Generation]) -> list[list[int]]:
    with run:
        if run.status == "ready":
            run.start()
        elif not run.status.ended:
            run.resume()
        return run.context.output_ids


@pytest.fixture
def whole(generator: Generator) -> list[list[int]]:
    """The tokens of the uninterrupted run, which both phases have a say in."""
    found = generator.generate(PROMPTS, PARAMS)
    assert re.fullmatch(REGEX, found.output_texts[0])
    plain = Generator(generator.engine, generator.tokenizer, defaults=generator.defaults)
    assert plain.generate(PROMPTS, PARAMS).output_ids[1] != found.output_ids[1]
    return found.output_ids


@pytest.fixture
def last(generator: Generator) -> int:
    with started(generator) as run:
        run.start()
        return run.step_count - 1


def test_a_run_goes_on_from_every_place_and_back_to_every_place(
    generator: Generator, whole: list[list[int]], last: int, stride: int
) -> None:
    for place in range(0, last, stride):
        assert rest(at(generator, place)) == whole, place
        assert rest(back_at(generator, place, last)) == whole, place


def test_it_is_recorded_and_verifies(generator: Generator, whole: list[list[int]], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert rest(started(generator, journal=path, digest_every=1)) == whole
    done = replay(path, generator=generator)
    done.run.close()
    assert done.divergence is None, done.divergence.report()


@pytest.mark.parametrize("kv", ["copy", "recompute"])
def test_a_snapshot_of_every_place_goes_on(
    generator: Generator, whole: list[list[int]], last: int, stride: int, tmp_path: Path, kv: str
) -> None:
    for place in range(0, last, stride):
        for run in (at(generator, place), back_at(generator, place, last)):
            run.snapshot(tmp_path / f"{place}.snap", kv=kv)
            run.close()
            assert rest(generator.resume(tmp_path / f"{place}.snap")) == whole, place


def test_a_fork_at_every_place_has_the_same_future(
    generator: Generator, whole: list[list[int]], last: int, stride: int
) -> None:
    with started(generator) as run:
        run.until(lambda run: run.step_count == last)
        for place in range(0, last, stride):
            assert rest(run.fork(place)) == whole, place


def test_the_debugger_sees_the_same_logits_wherever_it_comes_from(generator: Generator, last: int, stride: int) -> None:
    def seen(run: Run[Generation]) -> Distribution | str:
        try:
            return distribution(run.context, 0)
        except NoDistribution as error:
            return str(error)

    traveller = at(generator, last)
    for place in (*range(last, 1, -stride), *range(2, last, stride)):
        traveller.goto(place)
        with at(generator, place) as run:
            assert seen(traveller) == seen(run), place
    traveller.close()


@pytest.mark.parametrize("load", ["asynchronous"], indirect=True)
def test_nobody_waits_for_a_mask(generator: Generator, chat_folder: Path) -> None:
    """Without a phase that reads logits, CheckStop's are the only waits."""
    engine: Any = generator.engine
    assert isinstance(engine, AsynchronousEngine)
    masking = Generator(engine, generator.tokenizer, defaults=generator.defaults)
    before = engine.waits
    result = masking.generate("the quick", PARAMS[0])
    assert re.fullmatch(REGEX, result.text)
    assert engine.waits - before == result.output_tokens[0]
