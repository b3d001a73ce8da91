"""Sample: one token a row is drawn from its logits, in place, where the logits are."""

from dataclasses import dataclass

from phases.context import Generation
from phases.logprobs import TokenLogprob, logprob_of
from phases.token_ids import Tokens, tokens_of
from statemachine import Phase


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens, and the log-probability of each whose row asks for it."""

    tokens: Tokens
    logprobs: tuple[TokenLogprob | None, ...]


class Sample(Phase[Generation, Tokens | Scored]):
    """Leaves each live row's next token with the engine.

    A synchronous engine's host knows the tokens at once, and they are the outcome; for any other engine the
    outcome is empty, and CheckStop waits for them, while Decode runs. Where log-probabilities are asked for, tokens
    and logits are waited for here.
    """

    def run(self, context: Generation) -> Tokens | Scored:
        engine = context.bound_engine
        slots = [context.slots[row] for row in context.live]
        asked = [context.request.requests[row].params.logprobs for row in context.live]
        context.fresh_logits()
        context.draw()
        if asked.count(None) == len(asked):
            return engine.sampled(slots) if engine.synchronous else ()
        tokens = engine.sampled(slots)
        logprobs = tuple(
            None if top is None else logprob_of(engine.read_logits(slot), token, top=top)
            for slot, token, top in zip(slots, tokens, asked, strict=True)
        )
        return Scored(tokens, logprobs)

    def apply(self, context: Generation, outcome: Tokens | Scored) -> None:
        context.sampled, context.sampled_logprobs = tokens_of(outcome) or None, None
        if isinstance(outcome, Scored):
            context.sampled_logprobs = outcome.logprobs
        context.drawn_by = context.request
