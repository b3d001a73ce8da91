"""Sample: one token a row is drawn from its logits, in place, where the logits are."""

from dataclasses import dataclass

from phases.context import Failed, Generation
from phases.logprobs import TokenLogprob, logprob_of
from phases.request import FinishReason
from phases.token_ids import Tokens, tokens_of
from statemachine import Phase


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens of the rows that did not fail, and the log-probability of each whose row asks for it."""

    tokens: Tokens
    logprobs: tuple[TokenLogprob | None, ...] = ()
    failed: Failed = ()


class Sample(Phase[Generation, Tokens | Drawn]):
    """Leaves each live row's next token with the engine.

    A synchronous engine's host knows the tokens at once, and they are the outcome; for any other engine the
    outcome is empty, and CheckStop waits for them, while Decode runs. Where log-probabilities are asked for, tokens
    and logits are waited for here.

    A row whose logits hold no distribution fails alone, as soon as the host knows; if no row comes to anything else,
    that is the error of the run.
    """

    def run(self, context: Generation) -> Tokens | Drawn:
        engine = context.bound_engine
        context.fresh_logits()
        failed = context.draw()
        asked = [context.request.requests[row].params.logprobs for row in context.live]
        scored = asked.count(None) < len(asked)
        if not (scored or engine.synchronous):
            return ()
        tokens, failed = context.drawn_tokens(failed)
        if not (scored or failed):
            return tokens
        logprobs = tuple(
            _logprob(context, row, token) for row, token in zip(context.rows_but(failed), tokens, strict=True)
        )
        return Drawn(tokens, logprobs if scored else (), failed)

    def apply(self, context: Generation, outcome: Tokens | Drawn) -> None:
        context.sampled, context.sampled_logprobs = tokens_of(outcome) or None, None
        if isinstance(outcome, Drawn):
            context.sampled_logprobs = outcome.logprobs or None
            for row, words in outcome.failed:
                context.end(row, FinishReason.FAILED, words)
        context.drawn_by = context.request


def _logprob(context: Generation, row: int, token: int) -> TokenLogprob | None:
    """The log-probability of a row's token, if it asks for that."""
    top = context.request.requests[row].params.logprobs
    return None if top is None else logprob_of(context.bound_engine.read_logits(context.slots[row]), token, top=top)
