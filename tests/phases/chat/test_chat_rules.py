"""The chat machine under the rules: moved in every way there is, turns of any length behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from small_chunks import chunks_of

from phases import Generator, Message, SamplingParams
from phases.chat.machine import Turn, machine, start_request
from statemachine.testing import machine_rules, run_rules

pytestmark = pytest.mark.slow

SETTINGS = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
TEXTS = st.sampled_from(["fox", "the quick", "Prefill fills the cache", "lazy dog", "dog " * 200])


@pytest.fixture(scope="module")
def eight(chat_folder: Path) -> Iterator[Generator]:
    with (
        chunks_of(2),
        Generator.from_pretrained(chat_folder, max_batch=8, max_prefill_tokens=2, machine=machine) as loaded,
    ):
        yield loaded


def turns() -> st.SearchStrategy[Turn]:
    messages = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), TEXTS), min_size=1, max_size=3).map(
        tuple
    )
    params = st.builds(
        SamplingParams, temperature=st.sampled_from([0.0, 1.3]), seed=st.integers(0, 3),
        max_new_tokens=st.integers(1, 6), top_k=st.just(0), top_p=st.just(1.0), min_p=st.just(0.0),
        stop_token_ids=st.just(()),
    )  # fmt: skip
    silence = st.just(())
    return st.builds(Turn, st.integers(0, 5).flatmap(lambda n: messages if n else silence), params)


def test_a_chat_keeps_the_rules(eight: Generator) -> None:
    params = SamplingParams(temperature=0, seed=1).over(eight.defaults)
    spare = eight.start(start_request(params))
    spare.close()
    under_test = machine_rules(
        machine, lambda: eight.start(start_request(params)).context, resources=spare.resources,
        answers={"listen": turns()},
        pinned=lambda context: {buffer.name: buffer.address for buffer in context.bound_engine.memory()},
    )  # fmt: skip
    run_rules(under_test, SETTINGS)
    assert "transitions" not in under_test.coverage.never
