"""On a device a prompt takes over what a free row still holds: to the bit, and only while the row still holds it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from asynchronous_engine import AsynchronousEngine
from chat_checkpoint import write_chat_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu import Engine, LinearKVCache, load_engine
from phases import Generator, SamplingParams
from phases.replay import replay
from phases.resting_rows import RestingRows
from phases.tokenizer import Tokenizer

PARAMS = SamplingParams(temperature=0.8, seed=5, max_new_tokens=4, stop_token_ids=())
LONG = tuple(int(token) for token in np.random.default_rng(3).integers(3, 90, 400))
Load = Callable[..., Generator]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"), max_position_embeddings=1024)


@pytest.fixture
def load(folder: Path) -> Iterator[Load]:
    """Makes generators on an asynchronous engine, which is to be closed."""
    made: list[Engine] = []

    def make(rows: int = 2, *, resting: bool = True, **options: int) -> Generator:
        engine = AsynchronousEngine(load_engine(folder, "numpy", max_batch=rows))  # type: ignore[arg-type]
        made.append(engine)
        cache = RestingRows(engine) if resting else None
        return Generator(engine, Tokenizer.from_pretrained(folder), folder=folder, prompt_cache=cache, **options)

    yield make
    for engine in made:
        engine.close()


def ids(count: int, *, like: int = 0, seed: int = 0) -> tuple[int, ...]:
    own = np.random.default_rng([count, seed]).integers(3, 90, count - like)
    return (*LONG[:like], *(int(token) for token in own))


def logits_of(generator: Generator, prompt: tuple[int, ...]) -> tuple[list[bytes], list[int]]:
    with generator.start(prompt, PARAMS) as run:
        slot = run.context.slots[0]
        found = [generator.engine.read_logits(slot).tobytes() for step in run if step.phase in ("prefill", "decode")]
        return found[-4:], run.context.output_ids[0]


def reused(generator: Generator, prompt: tuple[int, ...]) -> int:
    return generator.generate(prompt, PARAMS).reused_tokens[0]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_later_prompt_reuses_what_its_own_row_or_another_holds(load: Load, rows: int) -> None:
    generator = load(rows)
    assert reused(generator, LONG[:300]) == 0
    assert reused(generator, ids(310, like=300)) == 288
    assert reused(generator, ids(310, like=100)) == 96
    assert reused(generator, ids(310, like=100)) == 288
    assert generator.prompt_cache is not None
    generator.prompt_cache.clear()
    assert reused(generator, ids(310, like=100)) == 0


def test_a_row_rests_until_all_others_were_needed(load: Load) -> None:
    generator = load(3)
    prompts = [ids(200, seed=seed) for seed in range(4)]
    for prompt in prompts[:3]:
        reused(generator, prompt)
    assert reused(generator, prompts[0]) == 192  # in its own row, which was free for longest
    assert reused(generator, prompts[3]) == 0  # the second one's
    assert reused(generator, prompts[0]) == 192
    assert reused(generator, prompts[1]) == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100)), min_size=2, max_size=6),
    bound=st.sampled_from([96, 200, 512]),
    rows=st.integers(1, 3),
)
def test_logits_and_tokens_are_to_the_bit_those_without(
    load: Load, prompts: list[tuple[int, int]], bound: int, rows: int
) -> None:
    cached, plain = load(rows, max_prefill_tokens=bound), load(1, resting=False)
    for like, own in prompts:
        prompt = ids(like + own, like=like)
        assert logits_of(cached, prompt) == logits_of(plain, prompt)


def test_a_row_that_anybody_wrote_to_is_not_believed(load: Load, tmp_path: Path) -> None:
    def scored(generator: Generator) -> None:
        generator.score(ids(150), LONG[:9])

    def resumed(generator: Generator) -> None:
        generator.resume(tmp_path / "snap").close()

    def imported(generator: Generator) -> None:
        engine = generator.engine
        (row,) = engine.kv_cache.acquire(1)
        engine.import_kv(row, 0, np.zeros_like(engine.export_kv(row, 0, 5)))
        engine.kv_cache.release([row])

    def copied(generator: Generator) -> None:
        (row,) = generator.engine.kv_cache.acquire(1)
        generator.engine.copy_row(row, row, length=0)
        generator.engine.kv_cache.release([row])

    def held(generator: Generator) -> None:
        generator.engine.kv_cache.release(generator.engine.kv_cache.acquire(1))

    with load(1, resting=False).start(ids(170), PARAMS) as run:
        run.until(lambda run: run.step_count == 3)
        run.snapshot(tmp_path / "snap")
    for door in (scored, resumed, imported, copied, held):
        generator = load(1)
        reused(generator, LONG[:300])
        door(generator)
        plain = load(1, resting=False)
        prompt = ids(310, like=300)
        assert logits_of(generator, prompt) == logits_of(plain, prompt), door
        assert reused(generator, prompt) == 288


def test_a_prefill_that_was_interrupted_leaves_nothing_to_believe(load: Load) -> None:
    generator = load(1)
    reused(generator, LONG[:300])
    engine = generator.engine

    class Interrupted(Exception):
        pass

    def interrupt(rows: object) -> None:
        whole(rows)
        engine.kv_cache.truncate(0, 192)  # as if it had been launched, but not counted
        raise Interrupted

    whole, engine.prefill = engine.prefill, interrupt  # type: ignore[assignment, method-assign]
    with generator.start(ids(310, like=200), PARAMS) as run, pytest.raises(Exception, match="Interrupted"):
        run.start()
    engine.prefill = whole  # type: ignore[method-assign]
    prompt = ids(310, like=300)
    assert logits_of(generator, prompt) == logits_of(load(1, resting=False), prompt)


def test_records_know_nothing_of_it(load: Load, tmp_path: Path) -> None:
    generator = load(2)
    reused(generator, LONG[:300])
    with generator.start(ids(310, like=300), PARAMS, journal=tmp_path / "run.jsonl") as run:
        run.until(lambda run: run.step_count == 5)
        assert generator.result(run).reused_tokens == [288]
        run.back(4)
        with run.fork() as fork:
            run.resume()
            fork.resume()
            assert run.context.output_ids == fork.context.output_ids
    for verifying in (generator, load(2, resting=False)):
        with replay(tmp_path / "run.jsonl", generator=verifying).run:
            pass
        found = replay(tmp_path / "run.jsonl", generator=verifying)
        found.run.close()
        assert found.divergence is None


def test_threads_that_want_each_other_s_rows(load: Load) -> None:
    generator, plain = load(4), load(1, resting=False)
    prompts = [ids(200 + 10 * like, like=100 * like) for like in (0, 1, 2)]
    expected = {prompt: plain.generate(prompt, PARAMS).output_ids for prompt in prompts}
    wrong: list[object] = []

    def ask(first: int) -> None:
        for number in range(6):
            prompt = prompts[(first + number) % 3]
            if (found := generator.generate(prompt, PARAMS).output_ids) != expected[prompt]:
                wrong.append((prompt, found))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert generator.free_rows == 4


def test_it_is_what_a_device_has_unless_another_cache_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import phases.generator

    def loaded(*arguments: object, **options: object) -> AsynchronousEngine:
        return AsynchronousEngine(load_engine(folder, "numpy", max_batch=1))  # type: ignore[arg-type]

    monkeypatch.setattr(phases.generator, "load_engine", loaded)
    kinds = [{}, {"prompt_cache": 0}, {"prompt_cache": "1 MB"}, {"prompt_cache_dir": tmp_path}]
    found = []
    for options in kinds:
        with Generator.from_pretrained(folder, **options) as generator:  # type: ignore[arg-type]
            found.append(type(generator.prompt_cache).__name__)
    assert found == ["RestingRows", "NoneType", "PromptCache", "PromptCache"]


# --- what the books count ---------------------------------------------------------------------------------------


def test_rows_go_out_in_the_order_in_which_they_came_back() -> None:
    cache = LinearKVCache(3, 10, 1, in_turns=True)
    first = [cache.acquire(1)[0] for _ in range(3)]
    for row in (first[1], first[2], first[0]):
        cache.release([row])
    assert [cache.acquire(1)[0] for _ in range(3)] == [first[1], first[2], first[0]]


def test_a_row_is_taken_by_its_number_while_it_is_free() -> None:
    cache = LinearKVCache(2, 10, 1)
    assert cache.take(1)
    assert not cache.take(1)
    assert cache.acquire(1) == (0,)
    cache.release([1])
    assert cache.take(1)


def test_what_changes_a_row_is_counted_and_what_only_forgets_is_not() -> None:
    cache = LinearKVCache(2, 10, 1)
    cache.acquire(1)
    counts = [cache.changes(0)]
    cache.commit(0, 3)
    counts.append(cache.changes(0))
    cache.change(0)
    counts.append(cache.changes(0))
    cache.truncate(0, 1)
    cache.commit(0, 0)
    cache.release([0])
    assert cache.changes(0) == counts[-1]
    cache.acquire(1)
    assert sorted({*counts, cache.changes(0)}) == [*counts, cache.changes(0)]
