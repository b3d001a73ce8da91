"""Constrain: before each draw, tokens that would break what a row's text is to be are made impossible."""

from collections.abc import Sequence
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np

from phases.context import Generation
from phases.errors import ConstraintError, RequestError
from phases.grammars import Follower, Grammars
from phases.logits_phase import LogitsPhase
from phases.request import GenerationRequest, SamplingParams
from phases.tokenizer import Tokenizer
from statemachine import Machine


class Constrain(LogitsPhase):
    """Leaves each row that has a constraint the logits of tokens by which its text can still become what it is to be.

    No state is kept but the row's tokens; what was worked out of them is kept beside, to go on from there. A row
    without a constraint is left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._followers: WeakKeyDictionary[Generation, dict[int, Follower]] = WeakKeyDictionary()

    def adjust_row(self, context: Generation, row: int) -> int:
        engine, params = context.bound_engine, context.request.requests[row].params
        if params.constraint is None:
            return engine.model.vocab
        followers = self._followers.setdefault(context, {})
        if row not in followers:
            followers[row] = _follower(context, params)
        followers[row].follow(context.output_ids[row])
        allowed = followers[row].allowed(params.stop_token_ids or ())
        engine.mask_logits(context.slots[row], allowed)
        return int(np.bitwise_count(allowed).sum())


@lru_cache(maxsize=16)
def _with_phase(machine: Machine[Generation]) -> Machine[Generation]:
    return machine.insert(Constrain(), before="sample")


def constrained(machine: Machine[Generation], request: GenerationRequest) -> Machine[Generation]:
    """The machine that a request is run by: with the phase `constrain` before Sample if a row has a constraint."""
    asked = any(row.params.constraint is not None for row in request.requests)
    return _with_phase(machine) if asked and "constrain" not in machine.phases else machine


def check_stops(context: Generation, params: SamplingParams) -> None:
    """Raise RequestError if a row with a constraint could not end with these stop tokens, or not with them alone."""
    grammars = Grammars.of(context.bound_tokenizer, context.bound_engine.model.vocab)
    grammars.check_stops(params.stop_token_ids or ())


def check_constraints(request: GenerationRequest, tokenizer: Tokenizer, vocab: int) -> None:
    """Raise RequestError if a constraint of a resolved request makes no sense, or cannot end its row."""
    for number, row in enumerate(request.requests):
        if row.params.constraint is None:
            continue
        grammars = Grammars.of(tokenizer, vocab)
        try:
            grammars.matcher(row.params.constraint)
            grammars.check_stops(row.params.stop_token_ids or ())
        except RequestError as error:
            raise RequestError(f"row {number}: {error}") from error


def check_forced(context: Generation, row: int, tokens: Sequence[int]) -> None:
    """Raise RequestError if a row's constraint does not let these tokens come behind those that are settled."""
    params, output = context.request.requests[row].params, context.output_ids[row]
    if params.constraint is None or context.token_unknown:
        return
    waiting = [token for place, token in sorted(context.forced[row].items()) if place >= len(output) + context.drawn]
    settled = context.tokens(row)[len(context.prompt_ids[row]) :] + waiting if context.prompt_ids else waiting
    follower = _follower(context, params)
    try:
        follower.follow(settled)
    except ConstraintError as error:
        raise RequestError(f"row {row} cannot be told what comes: {error}") from error
    place = follower.refused(tokens, params.stop_token_ids or ())
    if place is not None:
        text = context.bound_tokenizer.decode_token(tokens[place])
        raise RequestError(
            f"row {row} is constrained to the {params.constraint}, which {text!r:.80} (token {tokens[place]}) breaks"
        )


def _follower(context: Generation, params: SamplingParams) -> Follower:
    assert params.constraint is not None
    return Follower(Grammars.of(context.bound_tokenizer, context.bound_engine.model.vocab), params.constraint)
