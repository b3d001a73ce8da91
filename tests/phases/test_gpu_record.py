"""A long generation on a GPU, recorded there, comes to the same bit for bit: again and again, alone and in company."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint

from gpu import unavailable_engines
from phases import Generator, SamplingParams
from phases.replay import replay

MISSING = unavailable_engines().get("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

PARAMS = SamplingParams(temperature=0.9, seed=7, max_new_tokens=2000, stop_token_ids=())
STRANGE = SamplingParams(temperature=1.2, max_new_tokens=100, stop_token_ids=())


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    folder = write_chat_checkpoint(
        tmp_path_factory.mktemp("model"), max_position_embeddings=4096, hidden_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, intermediate_size=512,
    )  # fmt: skip
    with Generator.from_pretrained(folder, "cuda", max_batch=8) as loaded:
        yield loaded


@contextmanager
def strangers(generator: Generator, count: int) -> Iterator[None]:
    """So many threads generate text of their own on the same engine, and each has come to an end at least once."""
    over, rounds, failed = threading.Event(), [0] * count, []

    def stranger(number: int) -> None:
        try:
            while not over.is_set() or not rounds[number]:
                generator.generate(["lazy dog", "quick"], STRANGE)
                rounds[number] += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=stranger, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert not failed
    assert all(rounds)


@pytest.mark.parametrize("prompts", [["the fox"], ["the fox", "lazy dog", "x", "Decode appends"]])
def test_two_thousand_tokens_verify_to_the_bit_ten_times_alone_and_in_company(
    generator: Generator, tmp_path: Path, prompts: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    run = generator.start(prompts, PARAMS, journal=path, digest_every=16)
    run.start()
    assert [len(ids) for ids in run.context.output_ids] == [2000] * len(prompts)
    for company, times in ((0, 10), (2, 2)):
        with strangers(generator, company):
            for _ in range(times):
                verdict = replay(path, generator=generator).verdict
                assert verdict is not None
                assert verdict.verified
                assert not verdict.differences
    alone = generator.generate("the fox", PARAMS)
    assert run.context.output_ids[0] == alone.output_ids[0]


def test_back_and_on_and_over_to_the_processor(generator: Generator, tmp_path: Path) -> None:
    whole = generator.generate("the fox", PARAMS).output_ids[0]
    run = generator.start("the fox", PARAMS, keep=True)
    run.until(lambda run: len(run.context.output_ids[0]) == 300)
    run.snapshot(tmp_path / "a.snap")
    run.back(500)
    run.resume()
    assert run.context.output_ids[0] == whole
    run.close()
    with Generator.from_pretrained(generator.folder, "numpy", max_batch=1) as other:
        resumed = other.resume(tmp_path / "a.snap")
        assert resumed.context.output_ids[0] == whole[:300]
        assert resumed.resume() == "done"
