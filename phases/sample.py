"""Sample: one token a row is drawn from its logits, in place, where the logits are."""

from phases.context import Generation
from phases.token_ids import Tokens
from statemachine import Phase


class Sample(Phase[Generation, Tokens]):
    """Leaves each live row's next token with the engine.

    A synchronous engine's host knows the tokens at once, and they are the outcome; for any other engine the
    outcome is empty, and CheckStop waits for them, while Decode runs.
    """

    def run(self, context: Generation) -> Tokens:
        engine = context.bound_engine
        context.fresh_logits()
        context.draw()
        return engine.sampled([context.slots[row] for row in context.live]) if engine.synchronous else ()

    def apply(self, context: Generation, outcome: Tokens) -> None:
        context.sampled = outcome or None
        context.drawn_by = context.request
