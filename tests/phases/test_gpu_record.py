"""A long generation on a GPU, recorded there, comes to the same bit for bit: again and again, alone and in company."""

import threading
from collections.abc import Iterator
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


def test_two_thousand_tokens_verify_to_the_bit_alone_and_in_company(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = generator.start("the fox", PARAMS, journal=path, digest_every=16)
    run.start()

    def strangers(over: threading.Event) -> None:
        while not over.is_set():
            generator.generate(["lazy dog", "quick"], STRANGE)

    for company in (0, 2):
        over = threading.Event()
        threads = [threading.Thread(target=strangers, args=(over,)) for _ in range(company)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10 - 2 * company):
                verdict = replay(path, generator=generator).verdict
                assert verdict is not None
                assert verdict.verified
                assert not verdict.differences
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
    batch = generator.generate(["the fox", "lazy dog", "x", "Decode appends"], PARAMS)
    assert batch.output_ids[0] == run.context.output_ids[0]


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
