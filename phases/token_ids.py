"""Token ids, lengths and counts as outcomes declare them, so that no record can say what no model could."""

from typing import Annotated, Any

import msgspec

MOST = 2**31 - 1

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Length = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Row = Annotated[int, msgspec.Meta(ge=0, le=MOST)]

Tokens = tuple[TokenId, ...]


def tokens_of(outcome: Any) -> Tokens:
    """The tokens of an outcome of Sample or CheckStop, which says more than that where somebody asked for more."""
    return outcome if isinstance(outcome, tuple) else outcome.tokens


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))  # fmt: skip
