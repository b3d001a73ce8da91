"""Perplexity: what it comes to, against torch; that neither rows nor company change it; what is refused."""

import itertools
from collections.abc import Callable
from pathlib import Path

import demo_text  # the examples are on the path of the tests
import numpy as np
import pytest
from asynchronous_engine import AsynchronousEngine
from checkpoints import random_tensors, tiny_config, write_checkpoint, write_safetensors
from coarse_engine import coarse
from emulated_device import CAN_EMULATE, emulated
from hypothesis import given
from hypothesis import strategies as st

from gpu import Engine, HostEngine, LogitsError, ModelConfig, NoFreeRows, load_engine
from phases import Generator, RequestError, RowRequest
from phases.generator import DEMO_MODEL
from phases.perplexity import own_texts, perplexity_of, windows_of

__all__ = ["coarse"]  # a fixture

VOCAB = 97


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(folder, "numpy", max_batch=3, capacity=64)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


@given(st.data())
def test_windows_score_each_token_but_the_first_once_behind_enough_others(data: st.DataObject) -> None:
    window = data.draw(st.integers(2, 12))
    stride = data.draw(st.integers(1, window - 1))
    texts = [[(number, at) for at in range(length)]
             for number, length in enumerate(data.draw(st.lists(st.integers(2, 40), max_size=4)))]  # fmt: skip
    scored, seen = {}, set()
    for one in windows_of(texts, window=window, stride=stride):  # type: ignore[arg-type]
        assert 1 <= one.known < len(one.ids) <= window
        number, first = one.ids[0]  # type: ignore[misc]
        assert list(one.ids) == texts[number][first : first + len(one.ids)]
        assert number not in seen or one.known >= window - stride
        seen.add(number)
        for place, token in enumerate(one.ids[one.known :], one.place):
            assert place not in scored
            scored[place] = token
    assert [scored[place] for place in range(len(scored))] == [token for ids in texts for token in ids[1:]]


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(("length", "window", "stride"), [(60, 64, 32), (150, 64, 48), (41, 16, 15), (30, 2, 1)])
def test_it_is_what_torch_computes(folder: Path, engine: Engine, length: int, window: int, stride: int) -> None:
    """By the recipe of the documentation of transformers, and, where one window holds all, by the model's own loss."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = torch.tensor([text(length)])
    nats, likeliest, scored = [], [], 1
    with torch.inference_mode():
        for begin in range(0, length, stride):
            end = min(begin + window, length)
            logits = model(ids[:, begin:end]).logits[0, -(end - scored) - 1 : -1]
            nats += torch.nn.functional.cross_entropy(logits, ids[0, scored:end], reduction="none").tolist()
            likeliest += logits.argmax(-1).tolist()
            scored = end
            if end == length:
                break
        whole = model(ids, labels=ids).loss.exp().item()
    found = perplexity_of(engine, ids.tolist(), window=window, stride=stride)
    assert found.tokens == length - 1
    np.testing.assert_allclose(found.nats, nats, rtol=0, atol=2e-5)
    assert found.likeliest.tolist() == likeliest
    assert found.perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-6)
    assert found.perplexity == pytest.approx(2**found.bits)
    if window >= length:
        assert found.perplexity == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_company_and_the_order_of_texts_change_no_bit(folder: Path, engine: Engine, rows: int) -> None:
    texts = [text(length, seed=length) for length in (90, 2, 33, 64, 7)]
    alone = [perplexity_of(engine, [ids], window=32, stride=20) for ids in texts]
    with load_engine(folder, "numpy", max_batch=rows, capacity=40) as other:  # type: ignore[attr-defined]
        together = perplexity_of(other, texts, window=32, stride=20)
        backwards = perplexity_of(other, texts[::-1], window=32, stride=20)
        assert other.kv_cache.free == rows
    for found, order in ((together, alone), (backwards, alone[::-1])):
        assert found.nats.tobytes() == np.concatenate([one.nats for one in order]).tobytes()
        assert found.likeliest.tobytes() == np.concatenate([one.likeliest for one in order]).tobytes()


def test_a_text_that_any_window_holds_has_one_perplexity(engine: Engine) -> None:
    ids = [text(16)]
    found = {perplexity_of(engine, ids, window=window).perplexity for window in (16, 17, 40, 64, None)}
    assert len(found) == 1


def test_runs_on_other_rows_are_not_disturbed_and_their_rows_not_taken(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(2)
    try:
        for row in rows:
            engine.write_prompt(row, text(5, seed=row))
        engine.prefill(rows)
        before = [engine.read_logits(row).tobytes() for row in rows]
        found = perplexity_of(engine, [text(40), text(30)], window=16)
        assert [engine.read_logits(row).tobytes() for row in rows] == before
        assert engine.kv_cache.free == 1
    finally:
        engine.kv_cache.release(rows)
    assert found.nats.tobytes() == perplexity_of(engine, [text(40), text(30)], window=16).nats.tobytes()
    rows = engine.kv_cache.acquire(3)
    try:
        with pytest.raises(NoFreeRows):
            perplexity_of(engine, [text(4)])
    finally:
        engine.kv_cache.release(rows)


def test_an_asynchronous_engine_comes_to_the_same(folder: Path, engine: Engine) -> None:
    device = load_engine(folder, "numpy", max_batch=3, capacity=64)
    assert isinstance(device, HostEngine)
    other = AsynchronousEngine(device)
    texts = [text(70), text(20)]
    assert (
        perplexity_of(other, texts, window=30).nats.tobytes() == perplexity_of(engine, texts, window=30).nats.tobytes()
    )
    assert own_texts(other, 30, start=1, length=12) == own_texts(engine, 30, start=1, length=12)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
def test_the_cuda_engine_comes_close(folder: Path, engine: Engine) -> None:
    texts = [text(24), text(9)]
    found, expected = (
        perplexity_of(one, texts, window=16)
        for one in (emulated(folder, max_batch=2, capacity=16, self_check=False), engine)
    )
    assert found.perplexity == pytest.approx(expected.perplexity, rel=0.02)
    assert found.same_likeliest(expected) > 0.9
    assert found.perplexity != expected.perplexity


@pytest.mark.parametrize(("tokens", "rows"), [(1, 3), (30, 1), (30, 3), (57, 2)])
def test_a_model_draws_so_many_tokens_and_the_same_on_any_rows(
    folder: Path, engine: Engine, tokens: int, rows: int
) -> None:
    counted: list[tuple[int, int]] = []
    texts = own_texts(engine, tokens, start=5, length=11, seed=3, watch=lambda *count: counted.append(count))
    assert sum(len(ids) - 1 for ids in texts) == tokens
    assert all(ids[0] == 5 and len(ids) <= 11 for ids in texts)
    assert counted[-1] == (tokens, tokens)
    assert counted == sorted(set(counted))
    other = load_engine(folder, "numpy", max_batch=rows, capacity=16)
    assert own_texts(other, tokens, start=5, length=11, seed=3) == texts
    assert own_texts(other, tokens, start=5, length=11, seed=900) != texts
    assert other.kv_cache.free == rows


def test_what_a_model_draws_surprises_it_by_its_entropy_and_another_more(engine: Engine, tmp_path: Path) -> None:
    other = load_engine(write_checkpoint(tmp_path, seed=1), "numpy", max_batch=3, capacity=64)
    texts = own_texts(engine, 600, start=1, length=64)
    own, foreign = perplexity_of(engine, texts), perplexity_of(other, texts)
    assert own.tokens == 600
    rows, entropy = engine.kv_cache.acquire(1), []
    for ids in texts:  # by the distributions themselves
        engine.kv_cache.truncate(rows[0], 0)
        engine.write_prompt(rows[0], ids[:1])
        engine.prefill(rows)
        for token in ids[1:]:
            logits = engine.read_logits(rows[0]).astype(np.float64)
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            entropy.append(-(shares * np.log(shares)).sum())
            engine.write_token(rows[0], token)
            engine.decode(rows)
    engine.kv_cache.release(rows)
    error = own.nats.std() / np.sqrt(own.tokens)
    assert abs(own.nats.mean() - np.mean(entropy)) < 4 * error
    assert foreign.nats.mean() > own.nats.mean() + 4 * error


@pytest.mark.slow
@pytest.mark.usefixtures("coarse")
def test_coarser_weights_foretell_the_bundled_text_worse() -> None:
    measured = []
    for quantize in (None, "int8", "fp8"):
        with Generator.from_pretrained(engine="coarse", capacity=128, quantize=quantize) as generator:
            ids = [generator.tokenizer.encode(RowRequest(prompt=line, raw=True)) for line in held_out()[:16]]
            measured.append(perplexity_of(generator.engine, ids))
    plain, fine, rough = measured
    assert 1.4 < plain.perplexity < 1.8  # an untrained model would be at 1,536, the size of the vocabulary
    assert abs(fine.perplexity / plain.perplexity - 1) < 0.005
    assert rough.perplexity > 1.01 * plain.perplexity
    assert 1 == plain.same_likeliest(plain) > fine.same_likeliest(plain) > rough.same_likeliest(plain) > 0.8


REFUSED: list[tuple[Callable[[Engine], object], str]] = [
    (lambda engine: perplexity_of(engine, []), "there is no text"),
    (lambda engine: perplexity_of(engine, [text(3), [5]]), "text 1 has 1 token: expected at least 2"),
    (lambda engine: perplexity_of(engine, [[]]), "text 0 has 0 tokens"),
    (lambda engine: perplexity_of(engine, [[1, VOCAB]]), f"from 1 to {VOCAB}, the model knows 0 to {VOCAB - 1}"),
    (lambda engine: perplexity_of(engine, [[-1, 1]]), "tokens from -1 to 1"),
    (lambda engine: perplexity_of(engine, [text(9)], window=65), "window of 65 .* expected 2 to 64"),
    (lambda engine: perplexity_of(engine, [text(9)], window=1), "window of 1 "),
    (lambda engine: perplexity_of(engine, [text(9)], window=8, stride=8), "stride of 8 .* expected 1 to 7"),
    (lambda engine: perplexity_of(engine, [text(9)], stride=0), "stride of 0 "),
    (lambda engine: own_texts(engine, 0, start=1, length=9), "0 tokens in texts of up to 9 "),
    (lambda engine: own_texts(engine, 5, start=1, length=65), "texts of 2 to 64"),
]


@pytest.mark.parametrize(("work", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(engine: Engine, work: Callable[[Engine], object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        work(engine)
    assert engine.kv_cache.free == 3


def test_a_model_that_gives_no_distribution_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    tensors = random_tensors(ModelConfig.from_json(tiny_config()))
    tensors["lm_head.weight"][7] = np.nan
    write_safetensors(tmp_path / "model.safetensors", tensors)
    engine = load_engine(tmp_path, "numpy", max_batch=1, self_check=False)
    with pytest.raises(LogitsError, match="the model gives no distribution"):
        perplexity_of(engine, [text(4)])
    assert engine.kv_cache.free == 1


# --- the text that comes with the bundled model -------------------------------------------------------------------


def held_out() -> list[str]:
    return (DEMO_MODEL / "held_out.txt").read_text(encoding="utf-8").splitlines()


def test_the_bundled_text_tells_of_heroes_at_places_that_no_training_prompt_names() -> None:
    assert len(set(held_out())) == len(held_out()) == 64
    for story in held_out():
        assert len(demo_text.prompt_key(demo_text.opening(story)).split()) > 2  # a hero and a place
        assert demo_text.is_held_out(demo_text.opening(story))


@pytest.mark.slow
def test_the_bundled_text_is_of_the_grammar_and_not_of_the_training_text() -> None:
    """The training text is 300,000 chats of seed 2. Its beginning is compared here, all of it when this was made."""
    begun = list(itertools.islice(demo_text.chats(2), 20_000))
    trained = [part for chat in begun for part in (chat.plain, *(turn.assistant for turn in chat.turns))]
    told = {demo_text.opening(part) for part in trained} - {""}
    assert len(told) > 5000
    assert told.isdisjoint(map(demo_text.opening, held_out()))
    drawn = demo_text.held_out_stories(80, 2025, begun)
    assert set(held_out()) <= set(drawn)
