"""What goes in comes out again, whoever shares the engine; what makes no sense is refused and changes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from random_penalties import some_penalties

from gpu import CapacityError, Engine, LogitsError, Penalties, penalised, sample

GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
VOCAB = 97


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prompted(engine: Engine, row: int, tokens: Sequence[int]) -> None:
    engine.kv_cache.truncate(row, 0)
    engine.write_prompt(row, tokens)
    engine.prefill([row])


def greedy(engine: Engine, row: int, count: int) -> list[int]:
    tokens = []
    for _ in range(count):
        engine.sample([row])
        tokens += engine.sampled([row])
        engine.decode([row])
    return tokens


def test_memory_tells_every_buffer_and_none_ever_moves(engine: Engine) -> None:
    found = {buffer.name: buffer for buffer in engine.memory()}
    assert len(found) == len(engine.memory())
    assert len({buffer.address for buffer in found.values()}) == len(found)
    assert found["logits"].shape == (4, VOCAB)
    [row] = engine.kv_cache.acquire(1)
    prompted(engine, row, [1, 2, 3])
    greedy(engine, row, 5)
    assert {buffer.name: buffer for buffer in engine.memory()} == found


def test_peek_gives_the_numbers_of_a_row(engine: Engine) -> None:
    engine.set_sampling(1, temperature=0.5, top_k=2**40, top_p=0.25, min_p=0.125, seed=2**64 - 1)
    engine.write_prompt(1, [4, 5, 6])
    engine.write_token(1, 96)
    found = engine.peek(1)
    expected = {"temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "seed": 2**64 - 1, "next_token": 96}
    assert {name: found[name] for name in expected} == expected
    assert found["top_k"] >= VOCAB
    assert all(type(value) in (int, float) for value in found.values())
    assert engine.peek(0)["next_token"] != 96


def test_tokens_come_out_as_they_went_in(engine: Engine) -> None:
    for row, token in ((0, 0), (2, 96), (3, 5)):
        engine.write_token(row, token)
    assert engine.sampled([2, 0, 3]) == (96, 0, 5)
    assert engine.sampled([]) == ()


def test_logits_come_out_as_they_went_in_each_row_alone(engine: Engine) -> None:
    written = {row: noise(VOCAB, seed=row) for row in range(4)}
    for row, logits in written.items():
        mine = logits.copy()
        engine.write_logits(row, mine)
        mine[:] = 0  # whoever wrote it may use it again
    for row, logits in written.items():
        found = engine.read_logits(row)
        assert np.array_equal(found, logits)
        found[:] = 0  # and what was read is a copy
        assert np.array_equal(engine.read_logits(row), logits)


def test_logits_are_kept_and_restored(engine: Engine) -> None:
    first, second = noise(VOCAB, seed=1), noise(VOCAB, seed=2)
    engine.write_logits(1, first)
    engine.keep_logits(1)
    engine.write_logits(1, second)
    assert np.array_equal(engine.read_logits(1, kept=True), first)
    assert np.array_equal(engine.read_logits(1), second)
    engine.restore_logits(1)
    assert np.array_equal(engine.read_logits(1), first)
    engine.write_logits(1, second, kept=True)
    engine.restore_logits(1)
    assert np.array_equal(engine.read_logits(1), second)


def test_a_mask_leaves_the_logits_of_its_tokens_and_takes_all_others(engine: Engine) -> None:
    random = np.random.default_rng(7)
    for number in range(20):
        logits = {row: noise(VOCAB, seed=4 * number + row) for row in (0, 1, 2)}
        logits[1][random.integers(0, VOCAB, 3)] = [np.nan, np.inf, -np.inf]
        for row, values in logits.items():
            engine.write_logits(row, values)
            engine.keep_logits(row)
        tokens = random.choice(VOCAB, int(random.integers(0, VOCAB + 1)), replace=False) if number else [0, 31, 32, 96]
        allowed = np.zeros(4, np.uint32)
        for token in tokens:
            allowed[token // 32] |= np.uint32(1 << int(token) % 32)
        allowed[3] |= np.uint32(0xFFFFFFFE)  # beyond the vocabulary
        engine.mask_logits(1, allowed)
        allowed[:] = 0  # whoever wrote it may use it again
        expected = np.full(VOCAB, -np.inf, np.float32)
        expected[tokens] = logits[1][tokens]
        assert np.array_equal(engine.read_logits(1), expected, equal_nan=True)
        assert np.array_equal(engine.read_logits(1, kept=True), logits[1], equal_nan=True)
        assert all(np.array_equal(engine.read_logits(row), logits[row]) for row in (0, 2))


def test_a_token_is_drawn_from_what_a_mask_left(engine: Engine) -> None:
    [row] = engine.kv_cache.acquire(1)
    prompted(engine, row, [1, 2, 3])
    allowed = np.array([0, 0, 1 << 5, 0], np.uint32)
    for parameters in (GREEDY, GREEDY | {"temperature": 2.0}):
        engine.set_sampling(row, **parameters)
        engine.mask_logits(row, allowed)
        engine.sample([row])
        assert engine.sampled([row]) == (69,)
        engine.decode([row])
        assert np.isfinite(engine.read_logits(row)).all()


def test_kept_logits_outlive_what_is_computed_after_them(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(2)
    for row in rows:
        prompted(engine, row, [7, 8, row])
        engine.keep_logits(row)
    ends = [engine.read_logits(row) for row in rows]
    greedy(engine, rows[0], 6)
    for row, logits in zip(rows, ends, strict=True):
        engine.restore_logits(row)
        assert np.array_equal(engine.read_logits(row), logits)


def test_a_stretch_of_the_cache_goes_to_another_row(engine: Engine) -> None:
    source, target, other = engine.kv_cache.acquire(3)
    prompted(engine, source, list(range(1, 12)))
    prompted(engine, other, [5] * 20)
    untouched = engine.export_kv(other, 0, 20)
    for first, last in ((0, 4), (4, 4), (4, 10), (10, 11)):
        stretch = engine.export_kv(source, first, last)
        engine.import_kv(target, first, stretch)
        stretch[...] = np.nan
    assert engine.kv_cache.length(target) == 0
    engine.kv_cache.commit(target, 11)
    assert np.array_equal(engine.export_kv(target, 0, 11), engine.export_kv(source, 0, 11))
    assert np.array_equal(engine.export_kv(other, 0, 20), untouched)
    for row in (source, target):
        engine.write_token(row, 3)
    engine.decode([source, target])
    assert np.array_equal(engine.read_logits(source), engine.read_logits(target))


def test_a_copied_row_goes_on_alike(engine: Engine) -> None:
    source, target = engine.kv_cache.acquire(2)
    prompted(engine, source, [4, 8, 15])
    engine.keep_logits(source)
    kept = engine.read_logits(source)
    greedy(engine, source, 3)
    engine.sample([source])
    engine.copy_row(source, target)
    assert engine.kv_cache.length(target) == 6
    assert engine.sampled([target]) == engine.sampled([source])
    assert np.array_equal(engine.read_logits(target, kept=True), kept)
    assert greedy(engine, source, 10) == greedy(engine, target, 10)


def test_a_row_is_copied_in_part_and_nothing_behind(engine: Engine) -> None:
    source, target = engine.kv_cache.acquire(2)
    prompted(engine, source, [4, 8, 15, 16, 23])
    prompted(engine, target, [42] * 9)
    before = engine.export_kv(target, 0, 9)
    engine.copy_row(source, target, length=3)
    assert engine.kv_cache.lengths == (5, 3, 0, 0)
    assert np.array_equal(engine.export_kv(target, 0, 3), engine.export_kv(source, 0, 3))
    assert np.array_equal(engine.export_kv(target, 3, 9), before[:, :, :, 3:])


def test_sampling_is_that_of_the_specification(engine: Engine) -> None:
    random = np.random.default_rng(5)
    [row] = engine.kv_cache.acquire(1)
    for number in range(60):
        logits = random.standard_normal(VOCAB).astype(np.float32) * 3
        logits[random.integers(0, VOCAB, 20)] = -np.inf
        parameters = {
            "temperature": float(random.choice([0.0, 0.3, 1.0, 2.5])),
            "top_k": int(random.choice([0, 1, 5, 200])),
            "top_p": float(random.choice([1.0, 0.9, 0.2])),
            "min_p": float(random.choice([0.0, 0.1])),
            "seed": int(random.integers(0, 2**63)) * 2 + 1,
        }
        engine.kv_cache.truncate(row, 0)
        engine.kv_cache.commit(row, number % 49)  # the position is the number of tokens that the row holds
        engine.write_logits(row, logits)
        engine.set_sampling(row, **parameters)
        engine.sample([row])
        assert engine.sampled([row]) == (sample(logits, **parameters, position=number % 49),)


def test_penalties_are_those_of_the_specification(engine: Engine) -> None:
    random = np.random.default_rng(9)
    rows = engine.kv_cache.acquire(3)
    drawn = 0
    for number in range(40):
        expected = []
        for row in rows:
            length = int(random.integers(0, 49))
            logits = random.standard_normal(VOCAB).astype(np.float32) * 3
            logits[random.integers(0, VOCAB, 9)] = -np.inf
            # Few different tokens, so that they come again, told in two parts, and more of them than count.
            history = random.integers(0, 7, 48).astype(np.int32) * 13
            penalties = Penalties() if number % 4 == row else some_penalties(random, VOCAB)
            parameters = GREEDY | {"temperature": float(random.choice([0.0, 1.0])), "seed": number}
            engine.kv_cache.truncate(row, 0)
            engine.kv_cache.commit(row, length)
            engine.write_logits(row, logits)
            engine.set_sampling(row, **parameters)
            engine.set_penalties(row, penalties)
            engine.write_history(row, 0, history[:20].tolist())
            engine.write_history(row, 20, history[20:].tolist())
            changed = penalised(logits, history[:length], penalties)
            if not np.isfinite(changed).any():  # all is masked
                engine.set_penalties(row, Penalties())
                changed = logits
            expected.append(sample(changed, **parameters, position=length))
            drawn += not np.array_equal(changed, logits)
        for _ in range(2):  # drawing again gives the same, as the logits stay as they are
            engine.sample(rows)
            assert list(engine.sampled(rows)) == expected
    assert drawn > 60


def test_a_copied_row_has_the_history_too(engine: Engine) -> None:
    source, target = engine.kv_cache.acquire(2)
    prompted(engine, source, [1, 2, 3])
    engine.write_history(source, 0, [1, 2, 3])
    engine.copy_row(source, target)
    engine.set_penalties(target, Penalties(repetition=50.0, bias=((2, 30.0), (9, 20.0))))
    engine.sample([target])
    assert engine.sampled([target]) == (9,)  # had it not been there, it would be 2


def test_a_mask_that_leaves_no_token_is_refused(engine: Engine) -> None:
    [row] = engine.kv_cache.acquire(1)
    prompted(engine, row, [1, 2, 3])
    engine.set_penalties(row, Penalties(allowed=(4,), forbidden=(4,)))

    def draw() -> None:
        engine.sample([row])
        engine.sampled([row])

    with pytest.raises(LogitsError, match="nothing but -inf"):
        draw()
    engine.set_penalties(row, Penalties(allowed=(4,)))
    engine.sample([row])
    assert engine.sampled([row]) == (4,)


def test_draws_are_keyed_by_position_not_by_row(engine: Engine) -> None:
    rows = engine.kv_cache.acquire(3)
    for row in rows:
        engine.set_sampling(row, **GREEDY | {"temperature": 1.0, "seed": 11})
        prompted(engine, row, [1, 2, 3])
    drawn = []
    for _ in range(20):
        engine.sample(rows)
        drawn.append(engine.sampled(rows))
        engine.decode(rows)
    assert all(len(set(step)) == 1 for step in drawn)
    assert len({step[0] for step in drawn}) > 5
    # Back to the eighth token, and on: the same draws.
    engine.kv_cache.truncate(1, 3 + 7)
    engine.write_token(1, drawn[7][1])
    engine.decode([1])
    assert greedy(engine, 1, 12) == [step[1] for step in drawn[8:]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_without_a_distribution_are_refused_of_their_row_alone(engine: Engine, value: float) -> None:
    logits = noise(VOCAB)
    engine.write_logits(0, logits)
    logits[3] = value
    engine.write_logits(1, logits)

    def draw() -> None:  # the one may raise what is wrong, or the other where it is waited for
        engine.sample([1])
        engine.sampled([1])

    with pytest.raises(LogitsError, match=r"NaN|\+inf"):
        draw()
    engine.sample([0])
    assert engine.sampled([0]) == (int(np.argmax(noise(VOCAB))),)


def test_rows_without_a_distribution_are_named_and_all_others_are_drawn(engine: Engine) -> None:
    best = int(np.argmax(noise(VOCAB)))
    for row, value in ((0, np.nan), (1, None), (2, np.inf), (3, None)):
        logits = noise(VOCAB)
        if value is not None:
            logits[row] = value
        engine.write_logits(row, logits)

    def draw() -> None:
        engine.sample([0, 1, 2, 3])
        engine.sampled([0, 1, 2, 3])

    with pytest.raises(LogitsError) as refused:
        draw()
    assert sorted(refused.value.rows) == [0, 2]
    assert "NaN" in refused.value.rows[0]
    assert "+inf" in refused.value.rows[2]
    assert engine.sampled([1, 3]) == (best, best)


def test_refusals_say_what_is_wrong_and_change_nothing(engine: Engine) -> None:
    first, second = engine.kv_cache.acquire(2)
    prompted(engine, first, [1, 2])
    logits, cache = engine.read_logits(first), engine.export_kv(first, 0, 48)
    refused: list[tuple[str, Any]] = [
        ("token 97, the model knows tokens 0 to 96", lambda: engine.write_prompt(first, [1, 97])),
        ("token -1", lambda: engine.write_prompt(first, [-1])),
        ("has 0 tokens, expected 1 to 48", lambda: engine.write_prompt(first, [])),
        ("has 49 tokens", lambda: engine.write_prompt(first, [1] * 49)),
        ("token 97", lambda: engine.write_token(first, 97)),
        ("token -1", lambda: engine.write_token(first, -1)),
        ("no row 4", lambda: engine.write_token(4, 1)),
        ("no row -1", lambda: engine.write_prompt(-1, [1])),
        ("no row 4", lambda: engine.set_sampling(4, **GREEDY)),
        ("^temperature is nan", lambda: engine.set_sampling(0, **GREEDY | {"temperature": float("nan")})),
        ("^top_k is -1", lambda: engine.set_sampling(0, **GREEDY | {"top_k": -1})),
        ("^top_p is 1.1", lambda: engine.set_sampling(0, **GREEDY | {"top_p": 1.1})),
        ("^min_p is 2.0", lambda: engine.set_sampling(0, **GREEDY | {"min_p": 2.0})),
        ("^seed is -1", lambda: engine.set_sampling(0, **GREEDY | {"seed": -1})),
        ("no row 4", lambda: engine.set_penalties(4, Penalties())),
        ("^repetition is 0, expected 0.0001", lambda: engine.set_penalties(0, Penalties(repetition=0))),
        ("^frequency is nan", lambda: engine.set_penalties(0, Penalties(frequency=float("nan")))),
        ("^presence is 20000", lambda: engine.set_penalties(0, Penalties(presence=20000))),
        ("^no_repeat_ngram is -1", lambda: engine.set_penalties(0, Penalties(no_repeat_ngram=-1))),
        ("bias of token 3 is inf", lambda: engine.set_penalties(0, Penalties(bias=((3, float("inf")),)))),
        ("token 97 is named", lambda: engine.set_penalties(0, Penalties(forbidden=(97,)))),
        ("token -1 is named", lambda: engine.set_penalties(0, Penalties(bias=((-1, 1.0),)))),
        ("65 stops", lambda: engine.set_penalties(0, Penalties(stops=tuple(range(65)), min_new_tokens=1))),
        ("token 97", lambda: engine.write_history(0, 0, [1, 97])),
        ("no positions 47 to 49", lambda: engine.write_history(0, 47, [1, 2])),
        ("no prompt", lambda: engine.prefill([second])),
        (r"rows are \[0, 0\]", lambda: engine.decode([first, first])),
        (r"rows are \[0, 0\]", lambda: engine.prefill([first, first])),
        (r"rows are \[4\]", lambda: engine.sample([4])),
        (r"float64 \[97\], expected float32 \[97\]", lambda: engine.write_logits(0, np.zeros(97))),
        (r"float32 \[96\]", lambda: engine.write_logits(0, np.zeros(96, np.float32))),
        ("no row 4", lambda: engine.read_logits(4)),
        (r"mask is uint32 \[3\], expected uint32 \[4\]", lambda: engine.mask_logits(0, np.zeros(3, np.uint32))),
        (r"mask is int64 \[4\]", lambda: engine.mask_logits(0, np.zeros(4, np.int64))),  # type: ignore[arg-type]
        ("no row 4", lambda: engine.mask_logits(4, np.zeros(4, np.uint32))),
        ("no positions 3 to 49, only 0 to 48", lambda: engine.export_kv(0, 3, 49)),
        ("no positions 3 to 2", lambda: engine.export_kv(0, 3, 2)),
        ("no positions 47 to 49", lambda: engine.import_kv(0, 47, cache[:, :, :, :2])),
        ("stretch of the cache is", lambda: engine.import_kv(0, 0, cache[:1])),
        ("stretch of the cache is", lambda: engine.import_kv(0, 0, cache[0])),
        ("stretch of the cache is complex128", lambda: engine.import_kv(0, 0, cache.astype(np.complex128))),
        ("no row -1", lambda: engine.copy_row(0, -1)),
        ("no positions 0 to 49", lambda: engine.copy_row(0, 1, length=49)),
        ("no row 4", lambda: engine.peek(4)),
    ]
    for message, act in refused:
        with pytest.raises(ValueError, match=message):
            act()
    assert engine.kv_cache.lengths == (2, 0, 0, 0)
    assert np.array_equal(engine.read_logits(first), logits)
    assert np.array_equal(engine.export_kv(first, 0, 48), cache)


def test_what_does_not_fit_is_refused_and_nothing_is_computed(engine: Engine) -> None:
    full, other = engine.kv_cache.acquire(2)
    prompted(engine, full, [1] * 48)
    prompted(engine, other, [2] * 40)
    before = [engine.read_logits(row) for row in (full, other)]
    with pytest.raises(CapacityError, match="row 0 holds 48 of 48 tokens, 1 more do not fit"):
        engine.decode([other, full])
    engine.write_prompt(full, [3])
    engine.write_prompt(other, [3] * 9)
    with pytest.raises(CapacityError, match="row 1 holds 40 of 48 tokens, 9 more do not fit"):
        engine.prefill([other])
    assert engine.kv_cache.lengths == (48, 40, 0, 0)
    for row, logits in zip((full, other), before, strict=True):
        assert np.array_equal(engine.read_logits(row), logits)


def test_a_closed_engine_computes_no_more(engine: Engine) -> None:
    [row] = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [1])
    engine.close()
    for work in (engine.prefill, engine.decode):
        with pytest.raises(RuntimeError, match="closed"):
            work([row])
    engine.close()
