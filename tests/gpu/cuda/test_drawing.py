"""Which stages of sampling are launched for which rows."""

from typing import Any

import pytest

from gpu.cuda.drawing import Drawing, Launches, launches

VOCAB = 100


def drawing(**given: Any) -> Drawing:
    return Drawing.of(
        VOCAB, **({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0} | given)
    )  # fmt: skip


def each(*stages: int) -> Launches:
    return tuple((stage, stage) for stage in stages)


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"temperature": 0.0, "top_k": 5, "top_p": 0.5}, (0,)),  # nothing of it matters to who takes the largest
        ({}, (0, 7)),
        ({"min_p": 0.1}, (0, 7)),
        ({"top_k": VOCAB}, (0, 7)),
        ({"top_k": VOCAB - 1}, (0, 1, 2, 3, 7)),
        ({"top_p": 0.0}, (0, 4, 5, 6, 7)),
        ({"top_k": 1, "top_p": 0.999}, (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_a_row_takes_the_stages_that_it_asks_for(given: dict[str, Any], stages: tuple[int, ...]) -> None:
    assert launches([drawing(**given)], shares=2) == each(*stages)


def test_rows_that_are_drawn_together_share_their_stages() -> None:
    rows = [drawing(temperature=0.0), drawing(top_k=3), drawing(top_p=0.9)]
    assert launches(rows, shares=16) == each(0, 1, 2, 3, 4, 5, 6, 7)
    assert launches(rows[:2], shares=16) == each(0, 1, 2, 3, 7)


def test_a_block_that_has_all_logits_of_a_row_goes_through_all_stages_at_once() -> None:
    assert launches([drawing(temperature=0.0)], shares=1) == launches([drawing(top_p=0.9)], shares=1) == ((0, 7),)
