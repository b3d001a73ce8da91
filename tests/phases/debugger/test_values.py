"""Any value is shown, cut, and without an error."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_context import Colour, Odd, Plain, Secretive, deep, ring

from phases.debugger.values import CUT, hidden, part, parts, same, short

SHOWN: list[tuple[Any, str]] = [
    (3, "3"), ("fox", "'fox'"), (None, "None"), ([1, "a", {2: (3,)}], "[1, 'a', {2: (3,)}]"), (set(), "{}"),
    (list(range(9)), f"[0, 1, 2, 3, 4, 5, {CUT} 9 in all]"), (Colour.RED, "Colour.RED"), (Plain(3), "Plain(size=3)"),
    (10**5000, "<a number of 16610 bits>"), (np.zeros((2, 3)), "<ndarray 2x3 float64 [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]>"),
    (ring(), "Node(name='one', next=Node(name='two', next=<the Node around it>))"),
    (Secretive(), "<Secretive, whose repr raises RuntimeError>"), (frozenset({1}), "frozenset({1})"),
    ([[[[[[5]]]]]], f"[[[[[{CUT}]]]]]"), (b"ab", "b'ab'"), ("a\nb", r"'a\nb'"), (int, "<class 'int'>"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), SHOWN, ids=range(len(SHOWN)))
def test_a_value_is_shown(value: Any, text: str) -> None:
    assert short(value) == text


def test_what_is_large_or_deep_is_shown_at_once() -> None:
    large = [list(range(3_000_000)), dict.fromkeys(range(1_000_000)), "x" * 50_000_000, deep(), Odd()]
    began = time.monotonic()
    for value in large:
        assert len(short(value, 60)) <= 60
    assert time.monotonic() - began < 0.2


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=40,
)


@given(NESTED, st.integers(1, 200))
def test_any_value_fits_and_is_the_same_as_itself(value: Any, room: int) -> None:
    text = short(value, room)
    assert len(text) <= room
    assert "\n" not in text
    assert same(value, value)
    assert same([value], [value])


DIFFERENT: list[tuple[Any, Any]] = [
    (1, 2), ([1], [1, 2]), (Plain(1), Plain(2)), (np.zeros(2000), np.append(np.zeros(1999), 1)),
    (list(range(100)), [*range(99), 0]), ("a", None), (np.zeros(3), np.zeros(4)), ({"a": Plain(1)}, {"a": Plain(2)}),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), DIFFERENT)
def test_what_differs_is_told(old: Any, new: Any) -> None:
    assert not same(old, new)


def test_what_is_equal_is_told_without_an_equality_of_its_own() -> None:
    assert same(Plain(1), Plain(1))
    assert same([Plain(1)], [Plain(1)])
    assert same(np.arange(5), np.arange(5))
    assert same(ring(), ring())
    assert same(Secretive(), Secretive())


def test_parts_are_fields_and_no_properties() -> None:
    class Slotted:
        __slots__ = ("missing", "there")

        def __init__(self) -> None:
            self.there = 1

        @property
        def trap(self) -> int:
            raise AssertionError("a property was called")

    assert parts(Slotted()) == {"there": 1}
    assert part(Slotted(), "trap") is None
    assert parts({"a": 1, 2: 3}) == {"a": 1, "2": 3}
    assert hidden(Odd(million=[], blob=b"")) == {"password"}
