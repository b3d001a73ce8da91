"""An engine held against another: what passes, what rounding decides, and what does not pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu import CapacityError, Engine, load_engine
from gpu.verdict import verdict

PROMPT = [3, 1, 4, 1, 5]


class Off:
    """An engine whose logits, dtype or tokens are not those of its model."""

    def __init__(self, engine: Engine, *, dtype: str = "float32", change: Callable[[np.ndarray], None]) -> None:
        self._engine, self._dtype, self._change = engine, dtype, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def environment(self) -> dict[str, Any]:
        return self._engine.environment() | {"dtype": self._dtype}

    def read_logits(self, row: int) -> np.ndarray:
        logits = self._engine.read_logits(row)
        self._change(logits)
        return logits


@pytest.fixture
def pair(checkpoint: Path) -> Iterator[tuple[Engine, Engine]]:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(closing(load_engine(checkpoint, "numpy", max_batch=2, capacity=16))) for _ in range(2)
        )
        yield one, two


def test_the_same_engine_passes_and_both_give_their_rows_back(pair: tuple[Engine, Engine]) -> None:
    found = verdict(*pair, PROMPT, tokens=8)
    assert (found.off_by, found.same, found.tokens, found.doubtful) == (0.0, 8, 8, 0)
    assert (found.dtype, found.passed) == ("float32", True)
    assert [one.kv_cache.free for one in pair] == [2, 2]


def test_logits_that_are_off_do_not_pass_unless_the_dtype_rounds_so(pair: tuple[Engine, Engine]) -> None:
    def off(logits: np.ndarray) -> None:
        logits[::2] += 0.01 * np.abs(logits).max()

    def judged(dtype: str) -> Any:
        return verdict(Off(pair[1], dtype=dtype, change=off), pair[0], PROMPT, tokens=4)  # type: ignore[arg-type]

    assert judged("float32").off_by == pytest.approx(0.01, rel=0.1)
    assert not judged("float32").passed
    assert judged("bfloat16").passed


def test_not_a_number_does_not_pass(pair: tuple[Engine, Engine]) -> None:
    def spoil(logits: np.ndarray) -> None:
        logits[7] = np.nan

    found = verdict(Off(pair[1], change=spoil), pair[0], PROMPT, tokens=2)  # type: ignore[arg-type]
    assert np.isnan(found.off_by)
    assert not found.passed


def test_a_token_that_rounding_decides_is_told_apart_from_one_that_is_wrong(pair: tuple[Engine, Engine]) -> None:
    def nearly_alike(logits: np.ndarray) -> None:  # the likeliest has a rival
        logits[(logits.argmax() + 1) % len(logits)] = logits.max() * (1 - 1e-4)

    def the_rival(logits: np.ndarray) -> None:
        nearly_alike(logits)
        logits[(logits.argmax() + 1) % len(logits)] = logits.max() * (1 + 1e-4)

    def a_stranger(logits: np.ndarray) -> None:
        logits[logits.argmin()] = logits.max() * 1.0001

    reference = Off(pair[0], change=nearly_alike)
    found = verdict(Off(pair[1], change=the_rival), reference, PROMPT, tokens=3)  # type: ignore[arg-type]
    assert (found.same, found.doubtful, found.passed) == (0, 3, True)
    found = verdict(Off(pair[1], change=a_stranger), pair[0], PROMPT, tokens=3)  # type: ignore[arg-type]
    assert (found.same, found.doubtful, found.passed) == (0, 0, False)


def test_what_does_not_fit_is_refused_and_the_rows_are_given_back(pair: tuple[Engine, Engine]) -> None:
    with pytest.raises(CapacityError):
        verdict(*pair, PROMPT, tokens=13)
    assert [one.kv_cache.free for one in pair] == [2, 2]
