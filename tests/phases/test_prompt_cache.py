"""A prompt that begins like an earlier one computes only what is new of it, and nobody can tell from what comes out."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoint import TEMPLATE, write_chat_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu import OptionError, load_engine
from phases import GenerationRequest, Generator, Message, RequestError, RowRequest, SamplingParams
from phases.prompt_cache import PromptCache, byte_count
from phases.replay import replay
from phases.system_prompt import system_tokens

PARAMS = SamplingParams(temperature=0.8, seed=5, max_new_tokens=4, stop_token_ids=())
LONG = tuple(int(token) for token in np.random.default_rng(3).integers(3, 90, 400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = TEMPLATE.replace("['user', 'assistant']", "['system', 'user', 'assistant']")
    target = tmp_path_factory.mktemp("chat")
    return write_chat_checkpoint(target, template=template, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Generator]:
    """The same model without a prompt cache."""
    with Generator.from_pretrained(folder, "numpy", max_batch=4, prompt_cache=0) as loaded:
        yield loaded


@pytest.fixture
def cached(folder: Path) -> Iterator[Generator]:
    with Generator.from_pretrained(folder, "numpy", max_batch=4) as loaded:
        yield loaded


def ids(count: int, *, like: int = 0) -> tuple[int, ...]:
    """A prompt of so many tokens, of which the first `like` are those of all others."""
    own = np.random.default_rng(count).integers(3, 90, count - like)
    return (*LONG[:like], *(int(token) for token in own))


def logits_of(generator: Generator, prompt: tuple[int, ...]) -> tuple[list[bytes], list[int]]:
    """The logits of each token that is drawn, and the tokens."""
    with generator.start(prompt, PARAMS) as run:
        slot = run.context.slots[0]
        found = [generator.engine.read_logits(slot).tobytes() for step in run if step.phase in ("prefill", "decode")]
        return found[-4:], run.context.output_ids[0]


# --- what is reused ---------------------------------------------------------------------------------------------


def test_a_second_prompt_computes_what_is_new_of_it(cached: Generator) -> None:
    first = cached.generate(LONG[:300], PARAMS)
    assert (first.reused_tokens, first.computed_tokens) == ([0], [300])
    again = cached.generate(ids(310, like=300), PARAMS)
    assert (again.prompt_tokens, again.reused_tokens, again.computed_tokens) == ([310], [288], [22])  # blocks of 96
    assert cached.generate(ids(310, like=100), PARAMS).reused_tokens == [96]
    assert cached.generate(ids(310, like=90), PARAMS).reused_tokens == [0]


def test_a_prompt_that_is_all_there_computes_its_last_block_for_the_logits(cached: Generator) -> None:
    first = cached.generate(LONG[:192], PARAMS)
    again = cached.generate(LONG[:192], PARAMS)
    assert again == first
    assert again.reused_tokens == [96]


def test_rows_of_one_run_and_of_the_same_prompt(cached: Generator, plain: Generator) -> None:
    cached.generate(LONG[:200], PARAMS)
    batch = [ids(250, like=200), ids(250, like=200), ids(130, like=100), ids(20)]
    result = cached.generate(batch, PARAMS)
    assert result.reused_tokens == [192, 250, 96, 0]  # the second row is a copy of the first
    assert result == plain.generate(batch, PARAMS)


@pytest.mark.parametrize("engine", ["numpy", "onnx"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100)), min_size=2, max_size=4),
    bound=st.sampled_from([96, 200, 512]),
    few=st.booleans(),
)
def test_logits_and_tokens_are_to_the_bit_those_without(
    kinds: Callable[[str], tuple[Generator, Generator]],
    engine: str,
    prompts: list[tuple[int, int]],
    bound: int,
    few: bool,
) -> None:
    cached, plain = kinds(engine)
    cache = PromptCache(cached.engine, limit=3 * 96 * 4 * cached.engine.model.kv_numbers if few else 10**9)
    cached.prompt_cache = cached._resources._prompt_cache = cache
    cached.max_prefill_tokens = bound
    for like, own in prompts:
        prompt = ids(like + own, like=like)
        assert logits_of(cached, prompt) == logits_of(plain, prompt)


@pytest.fixture(scope="module")
def kinds(folder: Path, plain: Generator) -> Iterator[Callable[[str], tuple[Generator, Generator]]]:
    loaded: dict[str, tuple[Generator, Generator]] = {}

    def pair(engine: str) -> tuple[Generator, Generator]:
        if engine not in loaded:
            one, other = (Generator.from_pretrained(folder, engine, max_batch=4, prompt_cache=0) for _ in range(2))
            loaded[engine] = one, other
        return loaded[engine]

    yield pair
    for generators in loaded.values():
        for generator in generators:
            generator.close()


def test_prompts_that_are_scored_and_continued_several_times(cached: Generator, plain: Generator) -> None:
    cached.generate(LONG[:300], PARAMS)
    params = SamplingParams(prompt_logprobs=1, logprobs=2, n=2, repetition_penalty=1.3).over(PARAMS)
    prompt = ids(320, like=300)
    result = cached.generate(prompt, params)
    assert result == plain.generate(prompt, params)
    assert result.reused_tokens == [288, 320]


def test_no_record_tells_what_was_reused(cached: Generator, plain: Generator, tmp_path: Path) -> None:
    cached.generate(LONG[:300], PARAMS)
    prompt = ids(320, like=300)
    with cached.start(prompt, PARAMS, journal=tmp_path / "reused.jsonl", digest_every=1) as run:
        run.start()
        assert cached.result(run).reused_tokens == [288]
    verified = replay(tmp_path / "reused.jsonl", generator=plain)
    assert verified.divergence is None
    assert plain.result(verified.run).reused_tokens == [0]
    verified.run.close()
    with plain.start(prompt, PARAMS, journal=tmp_path / "computed.jsonl", digest_every=1) as run:
        run.start()
    verified = replay(tmp_path / "computed.jsonl", generator=cached)
    assert verified.divergence is None
    assert cached.result(verified.run).reused_tokens == [288]
    verified.run.close()


def test_a_run_that_reused_is_saved_gone_on_with_rewound_and_forked(
    cached: Generator, plain: Generator, tmp_path: Path
) -> None:
    prompt = ids(320, like=300)
    expected = plain.generate(prompt, PARAMS)
    cached.generate(LONG[:300], PARAMS)
    for amid in (2, 6):  # within prefill, and behind it
        with cached.start(prompt, PARAMS, keep=True) as run:
            for _, _step in zip(range(amid), run, strict=False):
                pass
            run.snapshot(tmp_path / f"{amid}.snap")
            with run.fork() as fork:
                fork.resume()
                assert cached.result(fork) == expected
            run.resume()
            assert cached.result(run) == expected
            run.goto(0)
            run.resume()
            assert cached.result(run) == expected
        for generator in (plain, cached):
            with generator.resume(tmp_path / f"{amid}.snap") as run:
                run.resume()
                assert generator.result(run) == expected


def test_what_came_from_a_snapshot_is_not_kept(cached: Generator, plain: Generator, tmp_path: Path) -> None:
    with plain.start(LONG[:300], PARAMS) as run:
        for _, _step in zip(range(4), run, strict=False):
            pass
        run.snapshot(tmp_path / "other.snap")  # of another engine, perhaps
    with cached.resume(tmp_path / "other.snap") as run:
        run.resume()
    assert cached.prompt_cache is not None
    assert cached.prompt_cache.size == 0


def test_a_killed_run_is_recovered_with_what_is_there(cached: Generator, plain: Generator, tmp_path: Path) -> None:
    prompt = ids(320, like=300)
    cached.generate(LONG[:300], PARAMS)
    journal = tmp_path / "killed.jsonl"
    run = cached.start(prompt, PARAMS, journal=journal)
    for _, _step in zip(range(6), run, strict=False):
        pass
    run.close()
    with cached.recover(journal) as run:
        run.resume()
        assert cached.result(run) == plain.generate(prompt, PARAMS)


def test_runs_in_several_threads(cached: Generator, plain: Generator) -> None:
    prompts = [ids(120 + 10 * number, like=110 + 5 * (number % 3)) for number in range(8)]
    found: dict[int, object] = {}

    def work(number: int) -> None:
        for _ in range(3):
            found[number] = cached.generate(prompts[number], PARAMS)

    for group in (range(4), range(4, 8)):  # as many as there are rows
        threads = [threading.Thread(target=work, args=[number]) for number in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[number] for number in range(8)] == [plain.generate(prompt, PARAMS) for prompt in prompts]


def test_a_chat_finds_its_first_turn_and_keeps_to_the_cache_of_its_own_after_that(folder: Path) -> None:
    from phases.chat.conversation import Conversation
    from phases.chat.machine import machine

    said = "the cat sat on the mat and looked at the moon " * 6
    answers = []
    for limit in ("256 MB", 0):
        with Generator.from_pretrained(folder, "numpy", prompt_cache=limit, machine=machine) as generator:
            fed = []
            for _ in range(2):
                with Conversation(generator, PARAMS) as chat:
                    for text in (said, "and then?"):
                        answers.append("".join(chat.say(text)))
                        fed.append(chat.fed[:2])
        if limit:
            assert fed[0][1] == 0
            assert fed[2][1] >= 96
            assert fed[1] == fed[3]
    assert answers[:4] == answers[4:]


# --- what is kept -----------------------------------------------------------------------------------------------


def test_beginnings_are_shared_and_their_ends_go_first(cached: Generator) -> None:
    engine = cached.engine
    block = 96 * 4 * engine.model.kv_numbers
    cache = PromptCache(engine, limit=4 * block)
    assert cache.block == 96
    [slot] = engine.kv_cache.acquire(1)
    prompts = [(*LONG[:96], *ids(96 * 2 + number)[:192]) for number in range(2)]
    for prompt in prompts:  # 1 + 2 + 2 blocks, of which 4 may stay
        engine.kv_cache.truncate(slot, 0)
        engine.write_prompt(slot, prompt)
        engine.prefill([slot])
        cache.keep(slot, prompt, adapter=None)
    assert cache.size == 4 * block

    def held(prompt: tuple[int, ...]) -> int:
        engine.kv_cache.truncate(slot, 0)
        return cache.fill(slot, (*prompt, 5), 0, len(prompt) + 1, adapter=None)

    assert [held(prompt) for prompt in prompts] == [192, 288]
    cache.clear()
    assert [held(prompt) for prompt in prompts] == [0, 0]
    engine.kv_cache.release([slot])


def test_one_prompt_of_more_than_the_limit_is_kept_as_far_as_it_fits(folder: Path) -> None:
    with Generator.from_pretrained(folder, "numpy") as generator:
        limit = 2 * 96 * 4 * generator.engine.model.kv_numbers
    with Generator.from_pretrained(folder, "numpy", prompt_cache=limit) as generator:
        generator.generate(LONG[:390], PARAMS)
        assert generator.prompt_cache is not None
        assert generator.prompt_cache.size == limit
        assert generator.generate(LONG[:390], PARAMS).reused_tokens == [192]


def test_adapters_do_not_share(cached: Generator) -> None:
    engine, cache = cached.engine, cached.prompt_cache
    assert cache is not None
    [slot] = engine.kv_cache.acquire(1)
    engine.write_prompt(slot, LONG[:100])
    engine.prefill([slot])
    cache.keep(slot, LONG[:96], adapter="pirate")
    engine.kv_cache.truncate(slot, 0)
    assert cache.fill(slot, LONG[:100], 0, 100, adapter=None) == 0
    assert cache.fill(slot, LONG[:100], 0, 100, adapter="owl") == 0
    assert cache.fill(slot, LONG[:100], 0, 100, adapter="pirate") == 96
    engine.kv_cache.release([slot])


@pytest.mark.parametrize(
    ("given", "count"),
    [(0, 0), (17, 17), ("256 MB", 256 * 10**6), ("1.5GiB", 3 * 2**29), ("12", 12), (" 3 kb ", 3000)],
)
def test_sizes(given: object, count: int) -> None:
    assert byte_count(given, "x") == count


@pytest.mark.parametrize("given", [-1, True, 1.5, "", "much", "-3 MB", "1 XB", "1e400 GB", "9" * 400])
def test_what_is_no_size_is_refused(given: object, folder: Path) -> None:
    with pytest.raises(OptionError, match=r'^prompt_cache is .*: expected a number of bytes, such as 0, .* "256 MB"$'):
        Generator.from_pretrained(folder, "numpy", prompt_cache=given)  # type: ignore[arg-type]


def test_a_closed_generator_closes_runs_without_a_word(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    generator = Generator.from_pretrained(folder, "numpy")
    run = generator.start(LONG[:200], PARAMS)
    for _, _step in zip(range(3), run, strict=False):
        pass
    generator.close()
    run.close()
    assert not recwarn.list


def test_nothing_is_kept_of_an_interrupted_prefill(cached: Generator, plain: Generator) -> None:
    class Interrupting:
        """Hands calls on; the second piece of a prompt is broken off in its middle."""

        def __init__(self, engine: object) -> None:
            self.engine, self.calls = engine, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.engine, name)

        def prefill(self, rows: list[int]) -> None:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            self.engine.prefill(rows)  # type: ignore[attr-defined]

    engine = cached.engine
    with cached.start(GenerationRequest((RowRequest(token_ids=LONG[:390], params=PARAMS),), 192), keep=True) as run:
        run.context.engine = Interrupting(engine)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            run.start()
    assert cached.prompt_cache is not None
    assert cached.prompt_cache.size == 2 * 96 * 4 * engine.model.kv_numbers  # of the first piece
    assert cached.generate(LONG[:390], PARAMS) == plain.generate(LONG[:390], PARAMS)


# --- system prompts ---------------------------------------------------------------------------------------------

SYSTEM = Message("system", "a cat sat on a mat and looked at the moon, and the moon looked back. " * 4)


def asking(text: str, *, save: bool = True) -> GenerationRequest:
    row = RowRequest(messages=(SYSTEM, Message("user", text)), params=PARAMS, save_system_prompt_kv_cache=save)
    return GenerationRequest((row,))


def test_a_system_prompt_is_there_at_once_and_stays(folder: Path) -> None:
    with Generator.from_pretrained(folder, "numpy", max_batch=2) as generator:
        row = asking("why?").requests[0]
        system = system_tokens(generator.tokenizer, row, generator.tokenizer.encode(row)) // 96 * 96
        assert system >= 96
        limit = (system // 96 + 1) * 96 * 4 * generator.engine.model.kv_numbers
    with Generator.from_pretrained(folder, "numpy", max_batch=2, prompt_cache=limit) as generator:
        run = generator.start(asking("why?"))
        for step in run:
            if step.phase == "sample":
                break
        assert generator.generate(asking("how?")).reused_tokens == [system]  # while the other is under way
        run.close()
        for number in range(4):  # others, which would have taken its place
            generator.generate(ids(390 + number), PARAMS)
        assert generator.generate(asking("who?")).reused_tokens == [system]
        assert generator.prompt_cache is not None
        assert generator.prompt_cache.size <= limit


def test_without_being_asked_for_it_is_put_out(folder: Path) -> None:
    with Generator.from_pretrained(folder, "numpy") as generator:
        limit = 3 * 96 * 4 * generator.engine.model.kv_numbers
    with Generator.from_pretrained(folder, "numpy", prompt_cache=limit) as generator:
        generator.generate(asking("why?", save=False))
        assert generator.generate(asking("how?", save=False)).reused_tokens[0] >= 96
        for number in range(4):
            generator.generate(ids(390 + number), PARAMS)
        assert generator.generate(asking("who?", save=False)).reused_tokens == [0]


def test_the_tokens_of_a_system_prompt_are_those_that_no_question_changes(cached: Generator) -> None:
    encode, tokenizer = cached.tokenizer.encode, cached.tokenizer
    rows = [asking(text).requests[0] for text in ("a", "0", "all of it", "\n", "  ")]
    counts = {system_tokens(tokenizer, row, encode(row)) for row in rows}
    assert len(counts) == 1
    [count] = counts
    assert len({encode(row)[:count] for row in rows}) == 1
    assert len({encode(row)[: count + 1] for row in rows}) > 1


def test_who_asks_for_a_system_prompt_to_be_kept_has_one(plain: Generator) -> None:
    with pytest.raises(RequestError, match="begin with one of the role 'system'"):
        RowRequest(prompt="why?", save_system_prompt_kv_cache=True)
    with pytest.raises(RequestError, match="needs a prompt cache"):
        plain.generate(asking("why?"))


# --- engines ----------------------------------------------------------------------------------------------------


def test_an_engine_that_waits_for_nothing_is_asked_only_when_the_run_has_ended(folder: Path) -> None:
    from asynchronous_engine import AsynchronousEngine

    from gpu import HostEngine
    from phases.tokenizer import Tokenizer

    device = load_engine(folder, "numpy", max_batch=2)
    assert isinstance(device, HostEngine)
    engine = AsynchronousEngine(device)
    cache = PromptCache(engine, limit=10**9)
    with Generator(engine, Tokenizer.from_pretrained(folder), folder=folder, prompt_cache=cache) as generator:
        run = generator.start(LONG[:200], PARAMS)
        list(run)
        assert cache.size == 2 * 96 * 4 * engine.model.kv_numbers
        engine.waits = 0
        again = generator.start(ids(210, like=200), PARAMS)
        for step in again:
            if step.phase == "prefill":
                assert engine.waits == 0
        assert generator.result(again).reused_tokens == [192]
