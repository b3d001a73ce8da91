"""The NumPy engine: lengths, neighbours, addresses, batches, threads, allocations, refusals."""

import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpu import CapacityError, Engine, NumpyEngine, SelfCheckError, load_engine, self_check

ROWS, CAPACITY, VOCAB = 3, 24, 97


def feed(engine: Engine, row: int, tokens: Sequence[int]) -> None:
    engine.buffers.input_ids[row, : len(tokens)] = tokens
    engine.buffers.input_lengths[row] = len(tokens)


def greedy(engine: Engine, rows: Sequence[int], count: int) -> list[tuple[int, ...]]:
    tokens = []
    for _ in range(count):
        engine.sample(rows)
        tokens.append(engine.sampled(rows))
        engine.decode(rows)
    return tokens


class CacheMachine(RuleBasedStateMachine):
    """Random prefill, decode, truncate and release on an engine, beside a model that keeps the tokens of each row."""

    folder: Path

    @initialize()
    def load(self) -> None:
        self.engine = load_engine(self.folder, max_batch=ROWS, capacity=CAPACITY, self_check=False)
        self.cache = self.engine.kv_cache
        self.tokens: dict[int, list[int]] = {}
        self.addresses = self.engine.buffers.addresses() | {"kv_cache": self.cache.data.ctypes.data}
        # Anything read before it was written would spread.
        self.cache.data[...] = np.nan
        self.before = self.cache.data.copy()

    def changed_only(self, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> None:
        """Nothing but these positions of these rows may have changed."""
        for row, (start, stop) in zip(rows, spans, strict=True):
            assert np.isfinite(self.cache.data[:, :, row, :, start:stop]).all()
            self.before[:, :, row, :, start:stop] = self.cache.data[:, :, row, :, start:stop]
        assert np.array_equal(self.before.view(np.uint32), self.cache.data.view(np.uint32))

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
        feed(self.engine, row, prompt)
        if start + len(prompt) > CAPACITY:
            with pytest.raises(CapacityError):
                self.engine.prefill([row])
            self.changed_only([], [])
            return
        self.engine.prefill([row])
        self.tokens[row] += prompt
        self.changed_only([row], [(start, start + len(prompt))])
        assert np.isfinite(self.engine.buffers.logits[row]).all()

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.sampled_from(sorted(self.tokens)), min_size=1, unique=True))
        starts = [len(self.tokens[row]) for row in rows]
        for row in rows:
            self.engine.buffers.next_token[row] = data.draw(st.integers(0, VOCAB - 1))
        if max(starts) == CAPACITY:
            with pytest.raises(CapacityError):
                self.engine.decode(rows)
            self.changed_only([], [])
            return
        self.engine.decode(rows)
        for row in rows:
            self.tokens[row].append(int(self.engine.buffers.next_token[row]))
        self.changed_only(rows, [(start, start + 1) for start in starts])
        assert np.isfinite(self.engine.buffers.logits[rows]).all()

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
        assert self.cache.lengths.tolist() == [len(self.tokens.get(row, [])) for row in range(ROWS)]
        assert self.engine.buffers.addresses() | {"kv_cache": self.cache.data.ctypes.data} == self.addresses

    def teardown(self) -> None:
        """What is cached equals what a fresh row would hold after all the tokens at once."""
        for row, tokens in getattr(self, "tokens", {}).items():
            if tokens:
                cached = self.cache.data[:, :, row, :, : len(tokens)].copy()
                self.cache.truncate(row, 0)
                feed(self.engine, row, tokens)
                self.engine.prefill([row])
                np.testing.assert_allclose(self.cache.data[:, :, row, :, : len(tokens)], cached, atol=1e-4)


def test_random_sequences_keep_lengths_neighbours_and_addresses(checkpoint: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("BoundCacheMachine", (CacheMachine,), {"folder": checkpoint})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bits_of_a_row_do_not_depend_on_its_batch(tmp_path: Path, family: str, threads: int) -> None:
    folder = write_checkpoint(tmp_path, family, hidden_size=64, intermediate_size=200, vocab_size=1031)
    engine = load_engine(folder, max_batch=5, capacity=64, threads=threads)
    rows = engine.kv_cache.acquire(5)
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5], [8], [9, 7, 9]]

    def run(chosen: Sequence[int]) -> dict[int, list[np.ndarray]]:
        logits: dict[int, list[np.ndarray]] = {row: [] for row in chosen}
        for row in chosen:
            engine.kv_cache.truncate(row, 0)
            feed(engine, row, prompts[row])
        engine.prefill(chosen)
        for _ in range(12):
            engine.sample(chosen)
            engine.decode(chosen)
            for row in chosen:
                logits[row].append(engine.buffers.logits[row].copy())
        return logits

    together = run(rows)
    for chosen in ([0], [1], [4, 2], [3, 1, 0]):
        for row, logits in run(chosen).items():
            assert all(np.array_equal(a, b) for a, b in zip(logits, together[row], strict=True)), (chosen, row)


def test_prefill_in_pieces_equals_prefill_at_once_and_decode(tmp_path: Path) -> None:
    # More than one chunk of 256, and more than one block of attention's products.
    folder = write_checkpoint(tmp_path, max_position_embeddings=1024, head_dim=64)
    engine = load_engine(folder, max_batch=3, capacity=600)
    rows = engine.kv_cache.acquire(3)
    tokens = np.random.default_rng(0).integers(0, VOCAB, 560)
    feed(engine, rows[0], tokens)
    engine.prefill(rows[:1])
    for piece in (tokens[:300], tokens[300:301], tokens[301:]):
        feed(engine, rows[1], piece)
        engine.prefill(rows[1:2])
    feed(engine, rows[2], tokens[:1])
    engine.prefill(rows[2:])
    for token in tokens[1:]:
        engine.buffers.next_token[rows[2]] = token
        engine.decode(rows[2:])
    at_once, in_pieces, one_by_one = engine.buffers.logits[list(rows)]
    np.testing.assert_allclose(in_pieces, at_once, atol=1e-4)
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-4)
    assert engine.kv_cache.lengths.tolist() == [560, 560, 560]


def test_decode_keeps_nothing_and_allocates_no_array(tmp_path: Path) -> None:
    sizes = {"hidden_size": 2048, "intermediate_size": 2048, "vocab_size": 2048, "head_dim": 64}
    folder = write_checkpoint(tmp_path, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    engine = load_engine(folder, max_batch=3, capacity=128)
    rows = engine.kv_cache.acquire(3)
    for row in rows:
        feed(engine, row, range(20))
    engine.prefill(rows)
    # One row: less than one vector of hidden, 8192 bytes; views, integers and the peaks of attention come and go.
    # Several rows: NumPy's iterator takes a buffer of at most 8192 elements an operand for strided operations.
    for chosen, allowed in ((rows[:1], 8192), (rows, 3 * 8192 * 4)):
        greedy(engine, chosen, 3)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            engine.decode(chosen)
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 2048
        assert peak - before < allowed


def test_threads_that_drive_different_rows_do_not_disturb_one_another(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(4)
    prompts = [[row + 1, 5, 7] for row in rows]

    def run(row: int, into: dict[int, list[tuple[int, ...]]]) -> None:
        engine.kv_cache.truncate(row, 0)
        feed(engine, row, prompts[row])
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


def test_sampling_is_keyed_by_position_not_by_row(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(3)
    for row in rows:
        feed(engine, row, [1, 2, 3])
        engine.buffers.set_sampling(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)
    engine.prefill(rows)
    drawn = greedy(engine, rows, 20)
    assert all(len(set(step)) == 1 for step in drawn)
    assert len({step[0] for step in drawn}) > 5
    # Back to the eighth token, and on: the same draws.
    engine.kv_cache.truncate(1, 3 + 7)
    engine.buffers.next_token[1] = drawn[7][1]
    engine.decode([1])
    assert [step[0] for step in greedy(engine, [1], 12)] == [step[1] for step in drawn[8:]]


def test_a_copied_row_goes_on_alike(engine: Engine) -> None:
    source, target = engine.kv_cache.acquire(2)
    feed(engine, source, [4, 8, 15])
    engine.prefill([source])
    engine.kv_cache.copy_row(source, target)
    engine.buffers.logits[target] = engine.buffers.logits[source]
    assert greedy(engine, [source], 10) == greedy(engine, [target], 10)


def test_bytes_per_token_counts_weights_once_and_the_used_cache(tmp_path: Path) -> None:
    engine = load_engine(write_checkpoint(tmp_path), max_batch=2, capacity=16)
    rows = engine.kv_cache.acquire(2)
    layer = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48
    weights = 4 * (2 * layer + 97 * 32)
    assert engine.bytes_per_token(rows[:1]) == weights + 32 * 4
    feed(engine, rows[0], [1, 2, 3])
    engine.prefill(rows[:1])
    assert engine.bytes_per_token(rows) == weights + 2 * 32 * 4 + 3 * (2 * 2 * 2 * 8 * 4)


def test_refusals_say_what_is_wrong_and_leave_the_lengths(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(2)
    feed(engine, 0, [1, 2])
    feed(engine, 1, [1, 97])
    with pytest.raises(ValueError, match="row 1 feeds token 97, the model knows tokens 0 to 96"):
        engine.prefill(rows)
    feed(engine, 1, [-1])
    with pytest.raises(ValueError, match="row 1 feeds token -1"):
        engine.prefill(rows)
    engine.buffers.input_lengths[1] = 0
    with pytest.raises(ValueError, match=r"input_lengths\[1\] is 0, expected 1 to 48"):
        engine.prefill(rows)
    engine.buffers.input_lengths[1] = 49
    with pytest.raises(ValueError, match=r"input_lengths\[1\] is 49"):
        engine.prefill(rows)
    engine.buffers.next_token[0] = -1
    with pytest.raises(ValueError, match="row 0 feeds token -1"):
        engine.decode([0])
    with pytest.raises(ValueError, match=r"rows are \[0, 0\]"):
        engine.decode([0, 0])
    with pytest.raises(ValueError, match=r"rows are \[4\]"):
        engine.sample([4])
    assert engine.kv_cache.lengths.tolist() == [0, 0, 0, 0]
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.decode([0])


def test_the_self_check_leaves_the_engine_clean(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, max_batch=2, capacity=16, self_check=True)
    assert engine.kv_cache.free == 2
    assert not engine.kv_cache.lengths.any()
    assert not engine.kv_cache.data.any()
    for name in ("input_ids", "input_lengths", "next_token", "logits"):
        assert not getattr(engine.buffers, name).any(), name


class _SkipsAPosition(NumpyEngine):
    """Leaves a hole in the cache at each decode step, and so reads what nobody wrote."""

    def decode(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.kv_cache.lengths[row] += 1
        super().decode(rows)


class _DecodesAnotherToken(NumpyEngine):
    """Feeds a token that is off by one."""

    def decode(self, rows: Sequence[int]) -> None:
        self.buffers.next_token[list(rows)] += 1
        super().decode(rows)


@pytest.mark.parametrize("broken", [_SkipsAPosition, _DecodesAnotherToken])
def test_the_self_check_finds_a_broken_engine(
    checkpoint: Path, broken: type[NumpyEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load_engine.__globals__["_ENGINES"], "broken", broken)
    engine = load_engine(checkpoint, "broken", max_batch=1, capacity=16, self_check=False)
    with pytest.raises(SelfCheckError, match="failed its self-check"):
        self_check(engine)
    assert engine.kv_cache.free == 1
    with pytest.raises(SelfCheckError):
        load_engine(checkpoint, "broken", max_batch=1, capacity=16)
