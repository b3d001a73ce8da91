"""Generation under the rules: whatever is done to a run, its tokens are those of the uninterrupted one."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_chunks import chunks_of

from phases import Generator, RequestError, SamplingParams
from phases.context import Generation
from phases.generation import machine
from phases.replay import replay
from statemachine import PhaseError, Status
from statemachine.execution import host_state
from statemachine.testing import machine_rules, run_rules

pytestmark = pytest.mark.slow

SETTINGS = settings(
    max_examples=100, stateful_step_count=14, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
PROMPTS = ("the quick", "Prefill fills the cache", "fox")


@pytest.fixture(scope="module")
def eight(chat_folder: Path) -> Iterator[Generator]:
    with chunks_of(8), Generator.from_pretrained(chat_folder, max_batch=8, max_prefill_tokens=8) as loaded:
        yield loaded


def params() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7, 1.3]),
        top_k=st.sampled_from([0, 5]),
        top_p=st.sampled_from([1.0, 0.9]),
        seed=st.integers(0, 3),
        max_new_tokens=st.integers(1, 10),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        no_repeat_ngram_size=st.sampled_from([0, 2]),
        min_new_tokens=st.sampled_from([0, 3]),
        stop=st.sampled_from([(), ("e",)]),
    )


def requests() -> st.SearchStrategy[tuple[list[str], list[SamplingParams]]]:
    """Batches of one or two rows: a run, its fork and a third one fit into eight."""
    return st.lists(st.tuples(st.sampled_from(PROMPTS), params()), min_size=1, max_size=2).map(
        lambda rows: ([prompt for prompt, _ in rows], [given for _, given in rows])
    )


ROW = st.integers(0, 1)
EDITS = {
    "sampling": st.fixed_dictionaries(
        {"row": ROW},
        optional={
            "temperature": st.sampled_from([0.0, 2.0]),
            "max_new_tokens": st.integers(1, 12),
            "frequency_penalty": st.sampled_from([0.0, 1.0]),
        },
    ),
    "force": st.fixed_dictionaries({"row": ROW, "tokens": st.lists(st.integers(0, 400), min_size=1, max_size=3)}),
    "append": st.fixed_dictionaries({"row": ROW, "text": st.sampled_from(["", "fox", " jumps over"])}),
}


def addresses(context: Generation) -> dict[str, int]:
    return {buffer.name: buffer.address for buffer in context.bound_engine.memory()}


def free(generator: Generator) -> int:
    """Rows that are free once what was merely forgotten has been collected: an error's traceback may hold a context."""
    cache = generator.engine.kv_cache
    if cache.free < cache.rows:
        gc.collect()
    return cache.free


def rules(generator: Generator, contexts: st.SearchStrategy[Generation], **options: Any) -> Any:
    spare = generator.start("fox")
    spare.close()
    return machine_rules(
        machine,
        contexts,
        resources=spare.resources,
        edits=EDITS,
        signals={"cancel_row": ROW},
        pinned=addresses,
        **{"may_raise": RequestError, **options},
    )


def test_generation_keeps_the_rules(eight: Generator) -> None:
    under_test = rules(eight, requests().map(lambda given: eight.start(*given).context))
    run_rules(under_test, SETTINGS)
    assert "transitions" not in under_test.coverage.never
    assert free(eight) == 8


class Faulty:
    """An engine that fails at chosen calls, before their work or after it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._plan: Iterator[int] = iter(())

    def arm(self, plan: Sequence[int]) -> None:
        """What happens at each coming call: 0 nothing, 1 a failure before the work, 2 one after it."""
        self._plan = iter(plan)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        return self._failing(found) if name in ("prefill", "decode", "sample") else found

    def _failing(self, work: Any) -> Any:
        def call(rows: Sequence[int]) -> None:
            fault = next(self._plan, 0)
            if fault == 1:
                raise OSError("the device is gone")
            work(rows)
            if fault == 2:
                raise OSError("the device went away")

        return call


@pytest.fixture(scope="module")
def faulty(eight: Generator) -> Generator:
    engine: Any = Faulty(eight.engine)
    return Generator(engine, eight.tokenizer, defaults=eight.defaults)


FAULTS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), min_size=1, max_size=40)


def test_generation_keeps_the_rules_when_phases_fail(eight: Generator, faulty: Generator) -> None:
    def begin(given: Any) -> Generation:
        faulty.engine.arm(given[1])
        return faulty.start(*given[0]).context

    under_test = rules(faulty, st.tuples(requests(), FAULTS).map(begin), may_raise=(OSError, RequestError))
    run_rules(under_test, SETTINGS)
    assert free(eight) == 8


def test_a_generation_that_failed_tries_again_and_comes_to_the_same_text(eight: Generator, faulty: Generator) -> None:
    failures = []

    @given(requests(), FAULTS)
    @settings(SETTINGS, max_examples=60)
    def tries_again(request_: Any, faults: list[int]) -> None:
        expected = eight.generate(*request_)
        faulty.engine.arm(faults)
        with faulty.start(*request_) as run:
            while run.status is not Status.DONE:
                try:
                    run.start() if run.status is Status.READY else run.resume()
                except PhaseError as error:
                    failures.append(type(error.__cause__))
            assert faulty.result(run) == expected

    tries_again()
    assert set(failures) == {OSError}
    assert free(eight) == 8


def test_a_run_that_failed_gives_its_rows_back_when_it_is_closed_and_disturbs_no_other(
    eight: Generator, faulty: Generator
) -> None:
    cache = eight.engine.kv_cache
    failures = []

    @given(requests(), requests(), FAULTS)
    @settings(SETTINGS, max_examples=60)
    def fails_alone(mine: Any, other: Any, faults: list[int]) -> None:
        alone = eight.generate(*other)
        faulty.engine.arm(faults)
        undisturbed, doomed = eight.start(*other), faulty.start(*mine)
        while not undisturbed.status.ended:
            undisturbed.step()
            if doomed.status.ended:
                continue
            before = host_state.save(doomed.context)
            try:
                doomed.step()
            except PhaseError as error:
                failures.append(type(error.__cause__))
                assert doomed.status is Status.FAILED
                assert host_state.save(doomed.context) == before
                held = len(undisturbed.context.slots)
                assert cache.free == 8 - held - len(doomed.context.slots)
                doomed.close()
                assert cache.free == 8 - held
        doomed.close()
        assert eight.result(undisturbed) == alone
        assert free(eight) == 8

    fails_alone()
    assert set(failures) == {OSError}


@given(requests(), st.integers(0, 30), st.sampled_from(["copy", "recompute"]), st.integers(0, 5))
@settings(SETTINGS, max_examples=60)
def test_resumed_on_another_generator_the_tokens_are_those_of_the_uninterrupted_run(
    eight: Generator, generator: Generator, tmp_path: Path, request_: Any, at: int, kv: str, back: int
) -> None:
    whole = eight.generate(*request_)
    run = eight.start(*request_)
    while run.step_count < at and not run.status.ended:
        run.step()
    if run.status.ended:
        return
    run.back(min(back, run.step_count))
    run.snapshot(tmp_path / "snapshot", kv=kv)
    resumed = generator.resume(tmp_path / "snapshot")
    resumed.resume()
    run.signal("cancel")
    assert generator.result(resumed) == whole
    assert free(eight) == 8
    assert free(generator) == generator.engine.kv_cache.rows


def test_a_resumed_run_that_goes_back_to_its_prompt_verifies_to_the_bit(eight: Generator, tmp_path: Path) -> None:
    run = eight.start(list(PROMPTS[:2]), SamplingParams(temperature=1.0, seed=3, max_new_tokens=6))
    run.until(lambda run: run.step_count == 12)
    run.snapshot(tmp_path / "snapshot")
    run.close()
    resumed = eight.resume(tmp_path / "snapshot", journal=tmp_path / "a.jsonl", keep=True)
    resumed.digest_every = 1
    resumed.goto(2)  # where Prefill has left its logits
    resumed.resume()
    resumed.close()
    verified = replay(tmp_path / "a.jsonl", generator=eight)
    verified.run.close()
    assert verified.divergence is None
