"""Token ids of a record as text, as far as the tokenizer of the recorded model is at hand."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from statemachine import Journal

if TYPE_CHECKING:
    from phases.tokenizer import Tokenizer

UNKNOWN = (OverflowError, ValueError, TypeError)  # what tokenizers raise for ids that they do not know
TOKEN_PHASES = ("sample", "check_stop")  # whose outcomes are a token for each row


def outcome_words(tokenizer: "Tokenizer | None", phase: str, outcome: Any) -> str:
    """What tokens say, where an outcome is tokens; "" where it is not, and for ids that no tokenizer knows."""
    if isinstance(outcome, Mapping):
        outcome = outcome.get("tokens")
    if tokenizer is None or phase not in TOKEN_PHASES or not isinstance(outcome, list | tuple):
        return ""
    try:
        return " ".join(repr(tokenizer.decode([token])) for token in outcome)
    except UNKNOWN:
        return ""


class TokenText:
    """Token ids as text, as far as the tokenizer of the recorded model is at hand."""

    def __init__(self, tokenizer: "Tokenizer | None", note: str) -> None:
        self.tokenizer = tokenizer
        self.note = note

    @classmethod
    def of(cls, journal: Journal, model: str | None = None) -> Self:
        """The tokenizer of a folder, or of the one that the journal names; where there is none, `note` says why."""
        from gpu import CheckpointError, tokenizer_fingerprint
        from phases.generator import DEMO, DEMO_MODEL
        from phases.tokenizer import Tokenizer

        source = model or str(journal.header.environment.get("source", DEMO))
        folder = DEMO_MODEL if source == DEMO else Path(os.path.expanduser(source))
        recorded = journal.header.environment.get("tokenizer")
        hint = "so tokens are shown by their ids; say where the checkpoint is with --model"
        if not folder.is_dir():
            return cls(None, f"The model {source!r} is not a folder on this machine, {hint}.")
        if recorded and tokenizer_fingerprint(folder) != recorded:
            return cls(None, f"The tokenizer in {str(folder)!r} is another than the one recorded, {hint}.")
        try:
            return cls(Tokenizer.from_pretrained(folder), "")
        except CheckpointError as error:
            return cls(None, f"No tokenizer can be loaded ({error}), {hint}.")

    def of_ids(self, ids: Sequence[int]) -> str:
        if self.tokenizer is not None:
            with suppress(*UNKNOWN):
                return self.tokenizer.decode(tuple(ids))
        return " ".join(map(str, ids))

    def of_one(self, token: int) -> str:
        """A token as a candidate is shown: with its spaces; by its number if it is no text of its own."""
        text = self.tokenizer.decode((token,)) if self.tokenizer else ""
        return text if text and "\ufffd" not in text else f"token {token}"

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each token adds to the text; "" while a character is not whole, and for special tokens."""
        from phases.tokenizer import TextStream

        ids = list(ids)
        if self.tokenizer is not None:
            stream = TextStream(self.tokenizer)
            with suppress(*UNKNOWN):
                return [stream.push(token) for token in ids]
        return [f"{token} " for token in ids]
