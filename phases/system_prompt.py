"""Which tokens of a chat are those of its system prompt: those that are the same whatever is said next."""

from typing import TYPE_CHECKING

from phases.request import Message, RowRequest
from phases.token_ids import common

if TYPE_CHECKING:
    from phases.tokenizer import Tokenizer

_SAID = ("a", "0")  # which begin with no token in common


def system_tokens(tokenizer: "Tokenizer", row: RowRequest, ids: tuple[int, ...]) -> int:
    """How many tokens of a row, the first of `ids`, come of its system prompt alone."""
    messages = row.messages or ()
    count = next((place for place, message in enumerate(messages) if message.role != "system"), len(messages))
    others = (tokenizer.encode(RowRequest(messages=(*messages[:count], Message("user", said)))) for said in _SAID)
    return min(common(ids, other) for other in others)
