"""CheckStop: the host reads the tokens and decides which rows are finished."""

from dataclasses import dataclass

from phases.context import Generation
from phases.request import FinishReason
from phases.stop_strings import stopped_at
from phases.token_ids import Length, Row, Tokens
from statemachine import Phase


@dataclass(frozen=True, slots=True)
class Stopped:
    """Tokens of which some complete a stop string."""

    tokens: Tokens
    kept: tuple[tuple[Row, Length], ...]  # each row that ends by that, and how many characters of its text stay


class CheckStop(Phase[Generation, Tokens | Stopped]):
    """The one place where a token enters the context; waits for it if the engine has not told it yet.

    Its outcome is the tokens of the live rows, and what becomes of the text of those that a stop string ends.
    """

    def run(self, context: Generation) -> Tokens | Stopped:
        tokens = self._tokens(context)
        kept = []
        for row, token in zip(context.live, tokens, strict=True):
            params = context.request.requests[row].params
            output = context.output_ids[row]
            if params.stop and len(output) + 1 >= (params.min_new_tokens or 0):
                ids = [*output, token]
                length = stopped_at(context.bound_tokenizer, ids, params.stop, keep=bool(params.keep_stop))
                if length is not None:
                    kept.append((row, length))
        return Stopped(tokens, tuple(kept)) if kept else tokens

    def apply(self, context: Generation, outcome: Tokens | Stopped) -> None:
        tokens, kept = (outcome.tokens, dict(outcome.kept)) if isinstance(outcome, Stopped) else (outcome, {})
        if not kept.keys() <= set(context.live):
            raise ValueError(f"rows {sorted(kept)} were ended by a stop string, but only {context.live} are live")
        for row, token in zip(context.live, tokens, strict=True):
            reason = context.finish_reason(row, token)
            context.finish_reasons[row] = FinishReason.STOP_STRING if row in kept else reason
            context.output_ids[row].append(token)
            context.kept_text[row] = kept.get(row)
        for row, logprob in zip(context.live, context.sampled_logprobs or (), strict=False):
            if logprob is not None:
                context.logprobs[row][len(context.output_ids[row]) - 1] = logprob
        context.sampled, context.sampled_logprobs, context.drawn_by, context.adjusted = None, None, None, ()
        context.live = tuple(row for row in context.live if context.finish_reasons[row] is None)

    @staticmethod
    def _tokens(context: Generation) -> Tokens:
        if context.sampled is not None:
            return context.sampled
        context.fresh_logits()  # a token that only the engine knew, before the generation went back, is drawn again
        return context.bound_engine.sampled([context.slots[row] for row in context.live])
