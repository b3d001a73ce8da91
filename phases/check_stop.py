"""CheckStop: the host reads the tokens and decides which rows are finished."""

from phases.context import Generation
from phases.token_ids import TokenId
from statemachine import Phase

Tokens = tuple[TokenId, ...]


class CheckStop(Phase[Generation, Tokens]):
    """The one place where a token enters the context; waits for it if the engine has not told it yet."""

    def run(self, context: Generation) -> Tokens:
        if context.sampled is not None:
            return context.sampled
        context.fresh_logits()  # a token that only the engine knew, before the generation went back, is drawn again
        return context.bound_engine.sampled([context.slots[row] for row in context.live])

    def apply(self, context: Generation, outcome: Tokens) -> None:
        for row, token in zip(context.live, outcome, strict=True):
            context.finish_reasons[row] = context.finish_reason(row, token)
            context.output_ids[row].append(token)
        context.sampled, context.drawn_by, context.adjusted = None, None, ()
        context.live = tuple(row for row in context.live if context.finish_reasons[row] is None)
