"""CheckStop: the host reads the tokens and decides which rows are finished."""

from dataclasses import dataclass

from phases.context import Failed, Generation
from phases.request import FinishReason
from phases.stop_strings import stopped_at
from phases.token_ids import Length, Row, Tokens, tokens_of
from statemachine import Phase


@dataclass(frozen=True, slots=True)
class Stopped:
    """Tokens, by which rows end in another way than by a token, or by how many they have."""

    tokens: Tokens  # of the rows that did not fail
    kept: tuple[tuple[Row, Length], ...] = ()  # each row that a stop string ends: characters of its text that stay
    failed: Failed = ()


class CheckStop(Phase[Generation, Tokens | Stopped]):
    """The one place where a token enters the context; waits for it if the engine has not told it yet.

    Its outcome is the tokens of the live rows, what becomes of the text of those that a stop string ends, and which
    failed, of an engine that tells no sooner, as in Sample.
    """

    def run(self, context: Generation) -> Tokens | Stopped:
        tokens, failed = self._tokens(context)
        kept = []
        for row, token in zip(context.rows_but(failed), tokens, strict=True):
            params = context.request.requests[row].params
            output = context.output_ids[row]
            if params.stop and len(output) + 1 >= (params.min_new_tokens or 0):
                ids = [*output, token]
                length = stopped_at(context.bound_tokenizer, ids, params.stop, keep=bool(params.keep_stop))
                if length is not None:
                    kept.append((row, length))
        return Stopped(tokens, tuple(kept), failed) if kept or failed else tokens

    def apply(self, context: Generation, outcome: Tokens | Stopped) -> None:
        tokens, kept = tokens_of(outcome), dict[int, int]()
        if isinstance(outcome, Stopped):
            kept = dict(outcome.kept)
            for row, words in outcome.failed:
                context.end(row, FinishReason.FAILED, words)
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
    def _tokens(context: Generation) -> tuple[Tokens, Failed]:
        if context.sampled is not None:
            return context.sampled, ()
        context.fresh_logits()  # a token that only the engine knew, before the generation went back, is drawn again
        return context.drawn_tokens()
