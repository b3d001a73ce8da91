"""What the values of a request must be; each function raises RequestError where one is not."""

import operator
from collections.abc import Iterable
from typing import Any

from phases.errors import RequestError


def check_text(text: object) -> None:
    """Refuse what is no text, or text that no encoding can hold: bytes of a command line that are no UTF-8, say."""
    if not isinstance(text, str):
        raise RequestError(f"text is expected, not {text!r:.200}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"character {error.start + 1} of a text is {text[error.start]!r}, half a character: was it read from bytes "
            f"that are not UTF-8? (text: {text[:80]!r})"
        ) from None


def is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def refuse_bytes(x: Any) -> None:
    """Refuse bytes, which look like token ids."""
    if isinstance(x, bytes | bytearray | memoryview):
        raise RequestError(
            f"text or token ids are expected, not bytes ({bytes(x[:40])!r}): decode them, or list the ids"
        )


def token_ids(values: Iterable[Any], name: str) -> tuple[int, ...]:
    refuse_bytes(values)
    try:
        ids = tuple(operator.index(value) for value in values)
    except TypeError:
        raise RequestError(f"{name} is a list of whole numbers, not {values!r:.200}") from None
    if any(token < 0 for token in ids):
        raise RequestError(f"{name} holds {min(ids)}, but token ids start at 0")
    return ids


def stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for string in strings:
        check_text(string)
        if not string:
            raise RequestError("stop holds an empty string, which every text holds: leave it out")
    return strings


def _id(token: Any) -> int:
    return int(token) if isinstance(token, str) and token.isascii() and token.isdecimal() else operator.index(token)


def logit_bias(given: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of a token and what is added to its logit, of a mapping or of such pairs; JSON has ids as strings."""
    try:
        pairs = [(_id(token), float(bias)) for token, bias in dict(given).items()]
    except (TypeError, ValueError):
        raise RequestError(
            f"logit_bias is a number for each token id, as in {{17: -5.0}}, not {given!r:.200}"
        ) from None
    for token, bias in pairs:
        if token < 0 or not -1e4 <= bias <= 1e4:
            raise RequestError(
                f"logit_bias is a number from -10000 to 10000 for token ids from 0 on, not {bias} for {token}; "
                f"forbidden_token_ids keeps a token out"
            )
    return tuple(pairs)


def prefill_bound(given: Any) -> int:
    if not is_int(given) or not 1 <= operator.index(given) < 2**31:
        raise RequestError(f"max_prefill_tokens is a whole number of at least 1, not {given!r:.200}")
    return operator.index(given)
