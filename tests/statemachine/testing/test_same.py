"""Whether two values are the same, whatever they are made of."""

import copy
import random
from typing import Any

import numpy as np
import pytest
from bag import Bag

from statemachine.testing.same import same


@pytest.mark.parametrize(
    "value",
    [1, 0.5, float("nan"), "a", None, [1, {"a": {2}}], random.Random(3), np.arange(3), Bag(count=2), iter([1, 2])],
)  # fmt: skip
def test_a_copy_is_the_same(value: Any) -> None:
    assert same(value, copy.deepcopy(value))
    assert not same(value, [value])


def test_what_differs_is_not_the_same() -> None:
    moved = random.Random(3)
    moved.random()
    assert not same(random.Random(3), moved)
    assert not same(np.arange(3), np.arange(3, dtype=np.int8))
    assert not same(Bag(count=1), Bag(count=2))
    assert not same({"a": 1}, {"a": 1.0})
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})
