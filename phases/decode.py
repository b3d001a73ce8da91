"""Decode: the token just drawn goes through the model, and its keys and values into the cache."""

from typing import Any

from phases import logits_digest
from phases.context import Generation
from phases.token_ids import Length
from statemachine import Phase

Lengths = tuple[Length, ...]


class Decode(Phase[Generation, Lengths]):
    """Leaves the next logits of every row that goes on; a row known to be finished is not computed.

    Its outcome is the cache's lengths for those rows.
    """

    def run(self, context: Generation) -> Lengths:
        engine = context.bound_engine
        rows = context.unfinished()
        slots = [context.slots[row] for row in rows]
        if context.token_unknown:
            context.fresh_logits()
        engine.decode(slots)
        context.stale = False
        lengths = tuple(engine.kv_cache.length(slot) for slot in slots)
        for row, length in zip(rows, lengths, strict=True):
            context.filled[row] = length
        return lengths

    def apply(self, context: Generation, outcome: Lengths) -> None:
        for row, length in zip(context.unfinished(), outcome, strict=True):
            context.cached[row] = length

    def digest(self, context: Generation) -> Any:
        return logits_digest.of_rows(context, context.unfinished())

    def explain(self, recorded: Any, replayed: Any) -> dict[str, Any]:
        return logits_digest.explain(recorded, replayed)
