"""Finds stop strings in text that comes token by token: where tokens begin and end in them does not matter."""

from collections.abc import Sequence

from phases.tokenizer import REPLACEMENT, Tokenizer

_CONTEXT = 8  # tokens and characters more than needed, as decoders look at what stands before


def stopped_at(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str], *, keep: bool) -> int | None:
    """How many characters of the text of `ids` stay if their last token completes one of `stops`; None if it does not.

    A text ends at the first character at which it holds a stop string. If several end there, it is cut before the
    longest of them, or behind it with `keep`.
    """
    if not any(stop in _tail(tokenizer, ids, max(map(len, stops))) for stop in stops):
        return None
    text, known = _whole(tokenizer, ids), len(_whole(tokenizer, ids[:-1]))
    found = []
    for stop in stops:
        first = text.find(stop, max(0, known + 1 - len(stop)))  # what ended earlier has been passed over
        if first >= 0:
            found.append((first + len(stop), first))
    return min(found)[0 if keep else 1] if found else None


def beginning(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters of a text may be the beginning of a stop string."""
    return max(
        (count for stop in stops for count in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:count])),
        default=0,
    )


def _tail(tokenizer: Tokenizer, ids: Sequence[int], longest: int) -> str:
    """The end of the text, long enough for whatever its last token can complete, however long the text is."""
    needed, count = longest + len(tokenizer.decode(ids[-1:])) + _CONTEXT, longest + _CONTEXT
    while len(text := tokenizer.decode(ids[-count:])) < needed and count < len(ids):
        count *= 2
    return text


def _whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, as far as its characters are whole."""
    return tokenizer.decode(ids).rstrip(REPLACEMENT)
