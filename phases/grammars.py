"""Constraints as llguidance has them: compiled for one tokenizer, and followed token by token."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from phases.constraint import Constraint
from phases.errors import ConstraintError, RequestError
from phases.printable import one_line
from phases.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions

Mask = npt.NDArray[np.uint32]

INSTALL = "pip install 'phasewalk[constrain]'"
_JSON_STYLE: "JsonCompileOptions" = {  # as json.dumps writes it
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
}  # fmt: skip
_NOTHING_FITS = "NoExtensionBias"  # how llguidance calls a text that no token goes on with
_COMPILED = 64  # grammars that are kept
_END = "<|the text is whole|>"  # a token that no model has: its bit of a mask is the answer to that question


class Grammars:
    """Compiles constraints for the tokens of one model.

    Raises
    ------
    RequestError
        When llguidance is not installed, or cannot be used with this tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise RequestError(f"a constraint needs llguidance: {INSTALL}") from error
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Fast

        fast = Fast.from_str(tokenizer.as_json())
        fast.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
        self.vocab = vocab
        self.end = int(fast.token_to_id(_END) or 0)
        try:
            self.tokens = LLTokenizer(fast.to_str(), n_vocab=max(vocab, self.end + 1), eos_token=self.end)
        except ValueError as error:
            raise RequestError(f"no constraint can be kept with this tokenizer: {one_line(error)}") from error
        self.dropped = self._dropped(tokenizer)
        self._compiled = lru_cache(_COMPILED)(self._compile)

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab: int) -> Self:
        """Those of a tokenizer and a model with so many tokens, made once."""
        found = _MADE.get(tokenizer)
        if found is None or found.vocab != vocab:
            found = _MADE[tokenizer] = cls(tokenizer, vocab)
        return found

    def matcher(self, constraint: Constraint) -> "LLMatcher":
        """What follows a text from its beginning; raises RequestError naming what is wrong with the constraint."""
        return self._compiled(constraint).deep_copy()

    def check_stops(self, stops: Sequence[int]) -> None:
        """Raise RequestError unless a row with a constraint can end with these tokens, and with them alone."""
        if not any(stop < self.vocab for stop in stops):
            raise RequestError("a row with a constraint ends with a stop token, but it has none: give stop_token_ids")
        for stop in stops:
            if stop < self.vocab and not self.tokens.is_special_token(stop) and self.tokens.decode_bytes([stop]):
                text = self.tokens.decode_str([stop])
                raise RequestError(
                    f"a row with a constraint ends with its whole text, but {stop} of its stop_token_ids is a piece of "
                    f"text ({text!r:.80}): take it out"
                )

    def _dropped(self, tokenizer: Tokenizer) -> Mask | None:
        """Bits of the tokens that begin with a space, if the tokenizer drops it where a text begins (sentencepiece)."""
        decode = self.tokens.decode_bytes
        spaced = (token for token in range(min(self.vocab, self.end)) if decode([token]).startswith(b" "))
        first = next(spaced, None)
        if first is None or tokenizer.decode([first]).startswith(" "):
            return None
        mask = np.zeros(-(-self.tokens.vocab_size // 32), np.uint32)
        for token in (first, *spaced):
            mask[token // 32] |= _bit(token)
        return mask

    def _compile(self, constraint: Constraint) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        try:
            limits = LLParserLimits(verbose_errors=False)
            matcher = LLMatcher(self.tokens, _grammar(constraint), log_level=0, limits=limits)
            wrong = matcher.get_error() if matcher.is_error() else ""
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise RequestError(f"the {constraint} cannot be used: {one_line(' '.join(wrong.split()), 400)}")
        return matcher


_MADE: "WeakKeyDictionary[Tokenizer, Any]" = WeakKeyDictionary()


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher, grammar_from

    match constraint.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(constraint.text, defaults=_JSON_STYLE)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "choice":
            return LLMatcher.grammar_from_regex("|".join(map(_literal, constraint.choice or ())))
        case _:
            return grammar_from("grammar", constraint.text)


def _literal(text: str) -> str:
    """The regular expression of one text alone, in characters that mean nothing else anywhere."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


class Follower:
    """Where in its constraint a row is: of its tokens alone, so it can be thrown away and made again at any time."""

    def __init__(self, grammars: Grammars, constraint: Constraint) -> None:
        self.constraint = constraint
        self._grammars = grammars
        self._matcher = grammars.matcher(constraint)
        self._seen: list[int] = []

    def follow(self, tokens: list[int]) -> None:
        """Be where these tokens, all since the text began, lead; raises ConstraintError where they break it."""
        seen = len(self._seen)
        if self._seen != tokens[:seen]:
            self._matcher, self._seen, seen = self._grammars.matcher(self.constraint), [], 0
        for number, token in enumerate(tokens[seen:], start=seen):
            if not self._matcher.consume_token(token):
                self._seen = [-1]  # what the matcher is now fits no tokens
                text = self._grammars.tokens.decode_str(tokens[: number + 1])
                raise ConstraintError(f"{one_line(text)!r} is no beginning of the {self.constraint}")
            self._seen.append(token)

    def allowed(self, stops: Sequence[int]) -> Mask:
        """A bit for each token that may come next, as `Engine.mask_logits` takes them; stop tokens once it is whole.

        Raises
        ------
        ConstraintError
            When there is none, or the grammar is too complex.
        """
        vocab, end = self._grammars.vocab, self._grammars.end
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32).copy()
        failure = self._matcher.get_error().partition("\n")[0] if self._matcher.is_error() else ""
        if failure == _NOTHING_FITS:
            mask[:] = 0
        elif failure:
            raise ConstraintError(f"the {self.constraint} cannot be followed: {one_line(failure)}")
        if not self._seen and self._grammars.dropped is not None:
            mask &= ~self._grammars.dropped
        whole = _has(mask, end)
        mask[end // 32] &= ~_bit(end)
        if whole:
            for stop in stops:
                if stop < vocab:
                    mask[stop // 32] |= _bit(stop)
        mask = mask[: -(-vocab // 32)]
        if vocab % 32:
            mask[-1] &= _bit(vocab) - np.uint32(1)
        if not mask.any():
            text = self._grammars.tokens.decode_str(self._seen)
            raise ConstraintError(
                f"no token of the model goes on with {one_line(text)!r} as the {self.constraint} wants it"
            )
        return mask

    def refused(self, tokens: Sequence[int], stops: Sequence[int]) -> int | None:
        """The place of the first of these tokens that must not come next; None if all of them may."""
        matcher = self._matcher.deep_copy()
        for place, token in enumerate(tokens):
            if token in stops and matcher.is_accepting():
                return None  # the row has ended
            if not matcher.consume_token(token):
                return place
        return None


def _bit(token: int) -> np.uint32:
    return np.uint32(1 << token % 32)


def _has(mask: Mask, token: int) -> bool:
    return bool(mask[token // 32] & _bit(token))
