"""Sample: one token a row is drawn from its logits, in place, where the logits are."""

from phases.context import Generation
from statemachine import Phase

Tokens = tuple[int, ...]


class Sample(Phase[Generation, Tokens]):
    """Leaves each live row's token in `buffers.next_token`.

    A synchronous engine's host knows the tokens at once, and they are the outcome; for any other engine the
    outcome is empty, and CheckStop waits for them, while Decode runs.
    """

    def run(self, context: Generation) -> Tokens:
        engine = context.bound_engine
        slots = [context.slots[row] for row in context.live]
        context.fresh_logits()
        engine.sample(slots)
        for row, slot in zip(context.live, slots, strict=True):
            if context.forced[row]:
                forced = context.forced[row].get(len(context.output_ids[row]))
                if forced is not None:
                    engine.buffers.next_token[slot] = forced
        return engine.sampled(slots) if engine.synchronous else ()

    def apply(self, context: Generation, outcome: Tokens) -> None:
        context.sampled = outcome or None
        context.drawn = True
