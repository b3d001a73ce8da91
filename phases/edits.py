"""What somebody may change in a resting generation: how a row is sampled, its next token, the text it goes on with."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from phases.constrain import check_forced, check_stops
from phases.context import Generation
from phases.errors import RequestError
from phases.penalties import check_tokens
from phases.request import RowRequest, SamplingParams
from phases.token_ids import Row, TokenId
from statemachine import Edit

_AT_THE_START = ("n", "prompt_logprobs", "constraint")  # what has been done by the time that something can be edited
_CHANGEABLE = [field.name for field in fields(SamplingParams) if field.name not in _AT_THE_START]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters that a row is sampled with from now on."""

    row: Row
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Forced:
    """Tokens that a row takes next, instead of what would be drawn."""

    row: Row
    tokens: tuple[TokenId, ...]


class SetSampling(Edit[Generation, Sampling]):
    """`run.edit("sampling", row=0, temperature=0.2)`: any fields of SamplingParams but n and prompt_logprobs."""

    def run(self, context: Generation, *, row: int = 0, **changes: Any) -> Sampling:
        _check_row(context, row)
        if "constraint" in changes:
            raise RequestError("a row's constraint is of its whole text, so it stays as it was: start another run")
        unknown = set(changes) - set(_CHANGEABLE)
        if unknown or not changes:
            raise RequestError(f"expected some of {', '.join(_CHANGEABLE)}, not {', '.join(unknown) or 'nothing'}")
        params = SamplingParams(**changes).over(context.request.requests[row].params)
        check_tokens(params, row=row, vocab=context.bound_engine.model.vocab)
        if params.constraint is not None:
            check_stops(context, params)
        return Sampling(row, params)

    def apply(self, context: Generation, outcome: Sampling) -> None:
        rows = list(context.request.requests)
        rows[outcome.row] = replace(rows[outcome.row], params=outcome.params)
        context.request = replace(context.request, requests=tuple(rows))
        if context.prompt_ids:
            context.budgets[outcome.row] = context.budget(outcome.row)


class Forcing(Edit[Generation, Forced]):
    """What forcing tokens and appending text have in common: tokens that wait to be taken."""

    def apply(self, context: Generation, outcome: Forced) -> None:
        forced = context.forced[outcome.row]
        first = max([len(context.output_ids[outcome.row]) + context.drawn, *(place + 1 for place in forced)])
        forced.update(enumerate(outcome.tokens, start=first))


class Force(Forcing):
    """`run.edit("force", row=0, token=17)`: the next token, or with `tokens` the next ones."""

    def run(self, context: Generation, *, row: int = 0, tokens: Sequence[int] = (), **token: int) -> Forced:
        _check_row(context, row)
        if set(token) - {"token"}:
            raise RequestError(f"expected row, token or tokens, not {', '.join(token)}")
        ids = RowRequest(token_ids=(*token.values(), *tokens)).token_ids or ()
        vocab = context.bound_engine.model.vocab
        if not ids or max(ids) >= vocab:
            raise RequestError(f"expected token ids from 0 to {vocab - 1}, not {list(ids)}")
        check_forced(context, row, ids)
        return Forced(row, ids)


class Append(Forcing):
    """`run.edit("append", row=0, text="...")`: text that the row goes on with."""

    def run(self, context: Generation, *, row: int = 0, text: str = "", **unknown: Any) -> Forced:
        _check_row(context, row)
        if unknown:
            raise RequestError(f"expected row and text, not {', '.join(unknown)}")
        tokens = context.bound_tokenizer.encode_continuation(text)
        if not tokens:
            raise RequestError(f"expected some text, but {text!r} comes to no token")
        check_forced(context, row, tokens)
        return Forced(row, tokens)


def _check_row(context: Generation, row: int) -> None:
    if row not in context.live:
        live = ", ".join(map(str, context.live)) or "none"
        raise RequestError(f"row {row!r} cannot be edited: rows that are not finished: {live}")
