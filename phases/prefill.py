"""Prefill: all prompt tokens of every row, but those that its KV cache holds, go through the model at once."""

from dataclasses import dataclass
from typing import Any

from phases import logits_digest
from phases.context import Generation
from phases.logprobs import Asked, TokenLogprob, score_tokens
from phases.token_ids import Length
from statemachine import Phase

Lengths = tuple[Length, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """The cache's lengths, and the log-probabilities of the prompts of those rows that ask for them."""

    lengths: Lengths
    logprobs: tuple[tuple[TokenLogprob, ...], ...]  # [rows], of all but the first token


class Prefill(Phase[Generation, Lengths | Scored]):
    """Leaves the logits of each row's last prompt token, and has them kept; its outcome is the cache's lengths.

    Rows of the same prompt share the work: it is computed once, and copied.

    Where log-probabilities of a prompt are asked for, it is fed token by token before, so that what follows is to the
    bit what it would be without.
    """

    def run(self, context: Generation) -> Lengths | Scored:
        engine = context.bound_engine
        logprobs = self._logprobs(context)
        for slot, ids, cached in zip(context.slots, context.prompt_ids, context.cached, strict=True):
            if 0 < cached <= engine.kv_cache.length(slot):
                engine.kv_cache.truncate(slot, cached)
                engine.write_prompt(slot, ids[cached:])
        context.prefill(range(len(context.slots)))
        context.filled_in = context.turn
        context.stale = False
        context.filled = [engine.kv_cache.length(slot) for slot in context.slots]
        return Scored(tuple(context.filled), logprobs) if logprobs else tuple(context.filled)

    def apply(self, context: Generation, outcome: Lengths | Scored) -> None:
        if isinstance(outcome, Scored):
            if len(outcome.logprobs) != len(context.slots):
                raise ValueError(
                    f"{len(outcome.logprobs)} prompts were scored, but there are {len(context.slots)} rows"
                )
            context.cached, context.prompt_logprobs = list(outcome.lengths), list(outcome.logprobs)
        else:
            context.cached = list(outcome)

    @staticmethod
    def _logprobs(context: Generation) -> tuple[tuple[TokenLogprob, ...], ...]:
        asked = {
            slot: Asked(ids, 1, row.params.prompt_logprobs)
            for slot, ids, row in zip(context.slots, context.prompt_ids, context.request.requests, strict=True)
            if row.params.prompt_logprobs is not None
        }
        if not asked:
            return ()
        engine = context.bound_engine
        found = score_tokens(engine, asked)
        for slot, one in asked.items():
            engine.kv_cache.truncate(slot, 0)
            engine.write_prompt(slot, one.ids)
        return tuple(found.get(slot, ()) for slot in context.slots)

    def digest(self, context: Generation) -> Any:
        return logits_digest.of_rows(context, range(len(context.slots)))

    def explain(self, recorded: Any, replayed: Any) -> dict[str, Any]:
        return logits_digest.explain(recorded, replayed)
