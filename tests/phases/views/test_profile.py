"""The profile of a decode step: its parts add up, its numbers make sense, and nothing is left behind."""

import json
from pathlib import Path

import pytest
from command_line import Command

from gpu import unavailable_engines
from phases import Generator, SamplingParams

MISSING = unavailable_engines().get("cuda")
pytestmark = pytest.mark.slow


def test_profile_parts_add_up_and_numbers_make_sense(phasewalk: Command, chat_folder: Path) -> None:
    for _ in range(3):  # parts are differences of times, which a busy machine may turn round
        code, out, _ = phasewalk("profile", "the fox", "--model", str(chat_folder), "--tokens", "20", "--json")
        value = json.loads(out)
        assert code == 0
        if all(part["median_ns"] > 0 for part in value["parts"]):
            break
    parts = {part["name"]: part for part in value["parts"]}
    assert list(parts) == ["context update", "binding", "engine", "sampling", "KV commit", "machine"]
    assert value["steps"] == 19
    assert sum(part["share"] for part in value["parts"]) == pytest.approx(1)
    assert all(part["median_ns"] > 0 for part in value["parts"])
    assert parts["engine"]["median_ns"] == max(part["median_ns"] for part in value["parts"])
    assert 0.2 < value["step_ns"] / value["plain_step_ns"] < 5  # passes that a busy machine may have disturbed
    inner = {part["name"]: part["share"] for part in value["engine_parts"]}
    assert {"linear.Linear", "layers.rms_norm", "layers.Attention.attend_one"} <= set(inner)
    assert sum(inner.values()) == pytest.approx(1, abs=0.05)
    numbers = {number["name"]: number["value"] for number in value["key_numbers"]}
    assert 20 < numbers["a machine step"] < 20_000
    assert 0 < numbers["a clock read"] < 5_000
    assert numbers["memory read"] > 0.1
    assert numbers["a decode step"] == value["plain_step_ns"]


def test_profile_tables_and_help(phasewalk: Command, chat_folder: Path) -> None:
    code, out, _ = phasewalk("profile", "--model", str(chat_folder), "--tokens", "5")
    assert code == 0
    for words in ("context update", "KV commit", "without stopwatches", "memory read", "a journal step", "GB/s"):
        assert words in out
    code, _, err = phasewalk("profile", "--engine", "abacus")
    assert code == 2
    assert "there is no engine 'abacus'" in err


@pytest.mark.gpu
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_profile_has_the_tables_of_a_device(phasewalk: Command, chat_folder: Path) -> None:
    code, out, _ = phasewalk(
        "profile", "--engine", "cuda", "--model", str(chat_folder), "--tokens", "5", "--context", "9"
    )
    assert code == 0
    for words in ("KV commit", "kernel by kernel", "cache update", "prefill of 9 tokens", "graph launch"):
        assert words in out


def test_profile_leaves_the_generator_as_it_was(chat_folder: Path) -> None:
    from phases.views.profile import profile

    with Generator.from_pretrained(chat_folder, max_batch=1) as generator:
        before = generator.generate("the fox", SamplingParams(temperature=0, max_new_tokens=5)).output_ids
        cache = generator.engine.kv_cache
        profile(generator, "the fox", tokens=5)
        assert generator.engine.kv_cache is cache
        assert cache.free == cache.rows
        assert generator.generate("the fox", SamplingParams(temperature=0, max_new_tokens=5)).output_ids == before
