"""Styled text fits into the room that it has."""

from hypothesis import given
from hypothesis import strategies as st

from phases.debugger.cells import fitted
from phases.debugger.styled import bar_of, percent


def test_wide_characters_keep_columns_straight() -> None:
    assert fitted("\u4f60\u597d", 6) == "\u4f60\u597d  "
    assert fitted("\u4f60\u597d", 3) == "\u4f60…"
    assert fitted("abcdef", 3) == "ab…"


@given(st.floats(0, 1), st.integers(1, 60))
def test_bars_and_percentages_fit(share: float, width: int) -> None:
    assert len(bar_of(share, width)) == width
    assert len(percent(share)) <= 5
    assert bar_of(share, width).strip() or not share
