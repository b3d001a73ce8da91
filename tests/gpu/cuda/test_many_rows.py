"""Millions of rows, of every kind and with all options: a device draws from equal logits the tokens that the CPU draws.

Rows are few tokens wide, so that there can be many of them; `test_cuda_engine` has wide ones.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from many_rows import Options, draw, random_logits

from gpu import sample
from gpu.cuda.engine import CudaEngine

pytestmark = pytest.mark.slow

Load = Callable[..., CudaEngine]
CAPACITY = 32
AGAIN = 16  # times that rows keep their options, with other logits


@pytest.mark.parametrize("vocab", [1, 2, 19, 64])
def test_many_rows_are_drawn_as_each_alone(vocab: int) -> None:
    random = np.random.default_rng(vocab)
    logits, options = random_logits(random, 3000, vocab), Options.random(random, 3000, vocab, 2**40)
    alone = [sample(row, **options.of(number)) for number, row in enumerate(logits)]
    assert draw(logits, options).tolist() == alone


@pytest.mark.parametrize("vocab", [19, 64])
def test_equal_logits_give_equal_tokens(load: Load, device: str, tmp_path: Path, vocab: int) -> None:
    count, rounds = (4096, 256) if device == "device" else (32, 8)  # over a million for each vocabulary
    folder = write_checkpoint(tmp_path, vocab_size=vocab, num_hidden_layers=1, hidden_size=8, intermediate_size=8)
    engine = load(folder, max_batch=count, capacity=CAPACITY)
    rows = engine.kv_cache.acquire(count)
    options = [
        Options.random(np.random.default_rng([vocab, number]), count, vocab, CAPACITY)
        for number in range(-(-rounds // AGAIN))
    ]

    def prepared(number: int) -> tuple[np.ndarray, np.ndarray]:
        logits = random_logits(np.random.default_rng([number, vocab]), count, vocab)
        return logits, draw(logits, options[number // AGAIN])

    found, expected = [], []
    with ThreadPoolExecutor() as pool:
        for number, (logits, tokens) in enumerate(pool.map(prepared, range(rounds))):
            if number % AGAIN == 0:
                for row in rows:
                    given = options[number // AGAIN].of(row)
                    engine.kv_cache.truncate(row, 0)
                    engine.kv_cache.commit(row, int(given.pop("position")))
                    engine.set_sampling(row, **given)  # type: ignore[arg-type]
            engine._staging.write(engine._arena.lines("logits"), logits)  # all rows at once, as no public verb does
            engine.sample(rows)
            expected.append(tokens)
            found.append(engine.sampled(rows))
    assert np.array_equal(np.array(found), np.array(expected))
    assert len(np.unique(expected)) > vocab / 2


def test_a_draw_that_is_off_by_one_would_be_seen() -> None:
    """The rows are such that seeds, positions and options matter: other ones give other tokens."""
    random = np.random.default_rng(0)
    logits, options = random_logits(random, 20_000, 64), Options.random(random, 20_000, 64, CAPACITY)
    tokens = draw(logits, options)
    for name in ("seed", "position"):
        moved = replace(options, **{name: getattr(options, name) + np.uint64(1)})
        assert np.mean(draw(logits, moved) != tokens) > 0.1, name
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        without = replace(options, **{name: np.full_like(getattr(options, name), off)})
        assert np.mean(draw(logits, without) != tokens) > 0.001, name
