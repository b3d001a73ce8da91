"""What is computed depends on a row's tokens alone: not on its company, its pieces, its past or unused memory."""

import threading
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpu import CapacityError, Engine, SelfCheckError, self_check

pytestmark = pytest.mark.slow

ROWS, CAPACITY, VOCAB = 3, 24, 97
Load = Callable[..., Engine]


def greedy(engine: Engine, rows: Sequence[int], count: int) -> list[tuple[int, ...]]:
    tokens = []
    for _ in range(count):
        engine.sample(rows)
        tokens.append(engine.sampled(rows))
        engine.decode(rows)
    return tokens


def test_the_self_check_passes_and_leaves_the_cache_as_it_was(engine: Engine) -> None:
    before = [engine.export_kv(row, 0, 48) for row in range(4)]
    self_check(engine)
    assert engine.kv_cache.free == 4
    assert engine.kv_cache.lengths == (0, 0, 0, 0)
    for row, cache in enumerate(before):
        assert np.array_equal(engine.export_kv(row, 0, 48), cache)


def test_prefill_at_once_in_pieces_and_decode_agree(
    load: Load, tmp_path: Path, poison: Callable[[Engine], None], near: float, stands_in: bool
) -> None:
    # More than one chunk of 256, and more than one block of the NumPy engine's attention.
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, head_dim=64)
    engine = load(folder, max_batch=3, capacity=600)
    at_once, in_pieces, one_by_one = rows = engine.kv_cache.acquire(3)
    poison(engine)
    tokens = np.random.default_rng(0).integers(0, VOCAB, 560).tolist()
    engine.write_prompt(at_once, tokens)
    engine.prefill([at_once])
    for piece in (tokens[:300], tokens[300:301], tokens[301:]):
        engine.write_prompt(in_pieces, piece)
        engine.prefill([in_pieces])
    first = 480 if stands_in else 1
    engine.write_prompt(one_by_one, tokens[:first])
    engine.prefill([one_by_one])
    for token in tokens[first:]:
        engine.write_token(one_by_one, token)
        engine.decode([one_by_one])
    expected = engine.read_logits(at_once)
    assert np.isfinite(expected).all()
    for row in (in_pieces, one_by_one):
        np.testing.assert_allclose(engine.read_logits(row), expected, atol=near)
        np.testing.assert_allclose(engine.export_kv(row, 0, 560), engine.export_kv(at_once, 0, 560), atol=near)
    assert [engine.kv_cache.length(row) for row in rows] == [560, 560, 560]


def test_a_prompt_cut_where_the_engine_lets_it_be_has_the_bits_of_a_whole_one(
    load: Load, tmp_path: Path, poison: Callable[[Engine], None], stands_in: bool
) -> None:
    count = 300 if stands_in else 600  # more than two chunks of 256, or one
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, head_dim=64, num_hidden_layers=1)
    engine = load(folder, max_batch=3, capacity=count + 40)
    chunk = engine.prefill_chunk
    assert chunk >= 1
    random = np.random.default_rng(0)
    tokens, other = (random.integers(0, VOCAB, n).tolist() for n in (count, 40))
    whole, cut, company = engine.kv_cache.acquire(3)
    poison(engine)
    engine.write_prompt(whole, tokens)
    engine.prefill([whole])
    uneven = {chunk, min(count - 1, max(1, 37 // chunk) * chunk), (count - 1) // chunk * chunk}
    places = [0, *sorted(place for place in uneven if 0 < place < count), count]
    for first, last in pairwise(places):
        engine.write_prompt(cut, tokens[first:last])
        engine.kv_cache.truncate(company, 0)
        engine.write_prompt(company, other[: len(places) + first % 7])
        engine.prefill([company, cut])
    assert engine.kv_cache.length(cut) == count
    assert engine.read_logits(cut).tobytes() == engine.read_logits(whole).tobytes()
    assert engine.export_kv(cut, 0, count).tobytes() == engine.export_kv(whole, 0, count).tobytes()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bits_of_a_row_do_not_depend_on_its_batch(
    load: Load, tmp_path: Path, family: str, poison: Callable[[Engine], None]
) -> None:
    folder = write_checkpoint(tmp_path, family, hidden_size=64, intermediate_size=200, vocab_size=1031)
    engine = load(folder, max_batch=5, capacity=64)
    rows = engine.kv_cache.acquire(5)
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5], [8], [9, 7, 9]]

    def run(chosen: Sequence[int]) -> dict[int, list[np.ndarray]]:
        logits: dict[int, list[np.ndarray]] = {row: [] for row in chosen}
        for row in chosen:
            engine.kv_cache.truncate(row, 0)
            engine.write_prompt(row, prompts[row])
        poison(engine)
        engine.prefill(chosen)
        for _ in range(12):
            for row in chosen:
                logits[row].append(engine.read_logits(row))
            engine.sample(chosen)
            engine.decode(chosen)
        return logits

    together = run(rows)
    for chosen in ([0], [1], [4, 2], [3, 1, 0]):
        for row, logits in run(chosen).items():
            assert all(np.array_equal(a, b) for a, b in zip(logits, together[row], strict=True)), (chosen, row)


def test_bits_of_a_row_are_the_same_alone_and_in_batches_of_any_size(
    load: Load, tmp_path: Path, poison: Callable[[Engine], None], on_device: bool
) -> None:
    batches, steps, long = ((2, 3, 8, 16, 33, 64), 8, 700) if on_device else ((2, 3, 9, 33), 2, 270)
    folder = write_checkpoint(tmp_path, head_dim=64, vocab_size=203, num_hidden_layers=1, max_position_embeddings=1024)
    engine = load(folder, max_batch=max(batches), capacity=long + steps)
    random = np.random.default_rng(0)
    rows = engine.kv_cache.acquire(max(batches))
    lengths = [long, *(int(random.choice([1, 2, 7, 16, 17])) for _ in rows[1:])]
    prompts = [random.integers(0, 203, length).tolist() for length in lengths]

    def bits(chosen: Sequence[int]) -> dict[int, list[bytes]]:
        for row in chosen:
            engine.kv_cache.truncate(row, 0)
            engine.write_prompt(row, prompts[row])
            engine.set_sampling(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=row)
        poison(engine)
        engine.prefill(chosen)
        found: dict[int, list[bytes]] = {row: [] for row in chosen}
        for _ in range(steps):
            for row in chosen:
                found[row].append(engine.read_logits(row).tobytes())
            engine.sample(chosen)
            engine.decode(chosen)
        for row in chosen:
            found[row] += engine.read_logits(row).tobytes(), engine.export_kv(row, 0, lengths[row] + steps).tobytes()
        return found

    alone = {row: bits([row])[row] for row in (rows[::5] if on_device else rows[:3])}
    for batch in batches:
        company = [0, *(1 + random.permutation(max(batches) - 1)[: batch - 1]).tolist()]
        for row, found in bits(random.permutation(company).tolist()).items():
            assert found == alone.get(row, found), (row, batch)


def test_a_row_that_was_given_back_starts_anew(engine: Engine, poison: Callable[[Engine], None]) -> None:
    def generate() -> list[tuple[int, ...]]:
        rows = engine.kv_cache.acquire(1)
        engine.write_prompt(rows[0], [5, 6, 7])
        engine.prefill(rows)
        tokens = greedy(engine, rows, 20)
        engine.kv_cache.release(rows)
        return tokens

    first = generate()
    assert generate() == first
    poison(engine)
    assert generate() == first
    assert engine.kv_cache.free == 4


def test_threads_that_drive_different_rows_do_not_disturb_one_another(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(4)

    def run(row: int, into: dict[int, list[tuple[int, ...]]]) -> None:
        engine.kv_cache.truncate(row, 0)
        engine.write_prompt(row, [row + 1, 5, 7])
        engine.prefill([row])
        into[row] = greedy(engine, [row], 40)

    alone: dict[int, list[tuple[int, ...]]] = {}
    for row in rows:
        run(row, alone)
    for _ in range(3):
        together: dict[int, list[tuple[int, ...]]] = {}
        threads = [threading.Thread(target=run, args=(row, together)) for row in rows]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone


def test_decode_keeps_nothing_and_allocates_no_array(load: Load, tmp_path: Path, allocates_nothing: bool) -> None:
    if not allocates_nothing:
        pytest.skip("this engine does not promise it")
    sizes = {"hidden_size": 2048, "intermediate_size": 2048, "vocab_size": 2048, "head_dim": 64}
    folder = write_checkpoint(tmp_path, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    engine = load(folder, max_batch=3, capacity=128)
    rows = engine.kv_cache.acquire(3)
    for row in rows:
        engine.write_prompt(row, range(20))
    engine.prefill(rows)
    # One row: less than one vector of hidden, 8192 bytes; views, integers and the peaks of attention come and go. Rows
    # that go together are a block of such vectors, and what is given to threads comes and goes too.
    # Several rows: NumPy's iterator takes a buffer of at most 8192 elements an operand for strided operations.
    together = engine.environment().get("decode") == "together"
    for chosen, allowed in ((rows[:1], 8192 * (1 + together)), (rows, 3 * 8192 * 4)):
        greedy(engine, chosen, 3)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            engine.decode(chosen)
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 2048
        assert peak - before < allowed


def test_bytes_per_token_counts_weights_once_and_the_used_cache(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(2)
    weights = engine.bytes_per_token(())
    one = engine.bytes_per_token(rows[:1]) - weights
    assert 0 <= one <= engine.model.hidden * 4
    engine.write_prompt(rows[0], [1, 2, 3])
    engine.prefill(rows[:1])
    assert engine.bytes_per_token(rows) == weights + 2 * one + 3 * engine.kv_cache.bytes_per_position


def test_the_environment_is_plain_and_says_what_every_engine_says(engine: Engine) -> None:
    found = engine.environment()
    assert found["engine"] == engine.name
    assert (found["rows"], found["capacity"]) == (4, 48)
    assert type(found["threads"]) is int
    assert isinstance(found["dtype"], str)
    assert engine.environment() == found


class Broken:
    """An engine whose decode goes wrong in a way that its work alone does not show."""

    def __init__(self, engine: Engine, fault: Callable[[Engine, int], None]) -> None:
        self._engine, self._fault = engine, fault

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def decode(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._fault(self._engine, row)
        self._engine.decode(rows)


def skip_a_position(engine: Engine, row: int) -> None:
    engine.kv_cache.commit(row, 1)


def feed_another_token(engine: Engine, row: int) -> None:
    engine.write_token(row, (engine.sampled([row])[0] + 1) % VOCAB)


@pytest.mark.parametrize("fault", [skip_a_position, feed_another_token])
def test_the_self_check_finds_what_is_broken(engine: Engine, fault: Callable[[Engine, int], None]) -> None:
    with pytest.raises(SelfCheckError, match="failed its self-check"):
        self_check(Broken(engine, fault))  # type: ignore[arg-type]
    assert engine.kv_cache.free == 4


class CacheMachine(RuleBasedStateMachine):
    """Random prefill, decode, truncate and release on an engine, beside a model that keeps the tokens of each row."""

    make: Callable[[], Engine]
    clears: bool

    @initialize()
    def load(self) -> None:
        self.engine = type(self).make()
        self.cache = self.engine.kv_cache
        self.tokens: dict[int, list[int]] = {}
        self.memory = self.engine.memory()
        # Anything read before it was written would spread.
        for row in range(ROWS):
            self.engine.import_kv(row, 0, np.full_like(self.engine.export_kv(row, 0, CAPACITY), np.nan))
        self.before = self.whole()

    def whole(self) -> np.ndarray:
        return np.stack([self.engine.export_kv(row, 0, CAPACITY) for row in range(ROWS)])

    def changed_only(self, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
        """Nothing but these positions of these rows may have changed."""
        after = self.whole()
        for row, (start, stop) in zip(rows, spans, strict=True):
            assert np.isfinite(after[row, :, :, :, start:stop]).all()
            assert np.isfinite(self.engine.read_logits(row)).all()
            self.before[row, :, :, :, start:stop] = after[row, :, :, :, start:stop]
            if self.clears and not after[row, :, :, :, stop:].any():
                self.before[row, :, :, :, stop:] = 0
        assert self.before.tobytes() == after.tobytes()

    @precondition(lambda self: len(self.tokens) < ROWS)
    @rule()
    def acquire(self) -> None:
        [row] = self.cache.acquire(1)
        assert row not in self.tokens
        self.tokens[row] = []

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CAPACITY))
    def prefill(self, data: st.DataObject, prompt: list[int]) -> None:
        row = data.draw(st.sampled_from(sorted(self.tokens)))
        start = len(self.tokens[row])
        self.engine.write_prompt(row, prompt)
        if start + len(prompt) > CAPACITY:
            with pytest.raises(CapacityError):
                self.engine.prefill([row])
            self.changed_only([], [])
            return
        self.engine.prefill([row])
        self.tokens[row] += prompt
        self.changed_only([row], [(start, start + len(prompt))])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.sampled_from(sorted(self.tokens)), min_size=1, unique=True))
        starts = [len(self.tokens[row]) for row in rows]
        tokens = [data.draw(st.integers(0, VOCAB - 1)) for _ in rows]
        for row, token in zip(rows, tokens, strict=True):
            self.engine.write_token(row, token)
        if max(starts) == CAPACITY:
            with pytest.raises(CapacityError):
                self.engine.decode(rows)
            self.changed_only([], [])
            return
        self.engine.decode(rows)
        for row, token in zip(rows, tokens, strict=True):
            self.tokens[row].append(token)
        self.changed_only(rows, [(start, start + 1) for start in starts])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.tokens)))
        length = data.draw(st.integers(0, len(self.tokens[row])))
        self.cache.truncate(row, length)
        del self.tokens[row][length:]
        self.changed_only([], [])

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.tokens)))
        self.cache.release([row])
        del self.tokens[row]
        self.changed_only([], [])

    @invariant()
    def lengths_are_right_and_nothing_moved(self) -> None:
        assert all(0 <= length <= self.cache.capacity for length in self.cache.lengths)
        assert list(self.cache.lengths) == [len(self.tokens.get(row, [])) for row in range(ROWS)]
        assert self.engine.memory() == self.memory

    def teardown(self) -> None:
        """What is cached equals what a fresh row would hold after all the tokens at once."""
        for row, tokens in getattr(self, "tokens", {}).items():
            if tokens:
                cached = self.engine.export_kv(row, 0, len(tokens))
                self.cache.truncate(row, 0)
                self.engine.write_prompt(row, tokens)
                self.engine.prefill([row])
                np.testing.assert_allclose(self.engine.export_kv(row, 0, len(tokens)), cached, atol=1e-4)
        if hasattr(self, "engine"):
            self.engine.close()


def test_random_sequences_keep_lengths_neighbours_and_addresses(
    load: Load, checkpoint: Path, clears: bool, stands_in: bool
) -> None:
    def make() -> Engine:
        return load(checkpoint, max_batch=ROWS, capacity=CAPACITY, self_check=False)

    run_state_machine_as_test(
        type("BoundCacheMachine", (CacheMachine,), {"make": staticmethod(make), "clears": clears}),
        settings=settings(
            max_examples=15 if stands_in else 40, stateful_step_count=20, deadline=None, derandomize=True,
            database=None, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
