"""Prefill: all prompt tokens of every row, but those that its KV cache holds, go through the model at once."""

from typing import Any

from phases import logits_digest
from phases.context import Generation
from phases.token_ids import Length
from statemachine import Phase

Lengths = tuple[Length, ...]


class Prefill(Phase[Generation, Lengths]):
    """Leaves the logits of each row's last prompt token, and has them kept; its outcome is the cache's lengths."""

    def run(self, context: Generation) -> Lengths:
        engine = context.bound_engine
        for slot, ids, cached in zip(context.slots, context.prompt_ids, context.cached, strict=True):
            if cached:
                engine.kv_cache.truncate(slot, cached)
                engine.write_prompt(slot, ids[cached:])
        engine.prefill(context.slots)
        context.filled_in = context.turn
        context.stale = False
        for slot in context.slots:
            engine.keep_logits(slot)
        context.filled = [engine.kv_cache.length(slot) for slot in context.slots]
        return tuple(context.filled)

    def apply(self, context: Generation, outcome: Lengths) -> None:
        context.cached = list(outcome)

    def digest(self, context: Generation) -> Any:
        return logits_digest.of_rows(context, range(len(context.slots)))

    def explain(self, recorded: Any, replayed: Any) -> dict[str, Any]:
        return logits_digest.explain(recorded, replayed)
