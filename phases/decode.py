"""Decode: the token just drawn goes through the model, and its keys and values into the cache."""

from phases.context import Generation
from statemachine import Phase


class Decode(Phase[Generation, None]):
    """Leaves the next logits of every row that goes on; a row known to be finished is not computed."""

    def run(self, context: Generation) -> None:
        context.bound_engine.decode([context.slots[row] for row in context.unfinished()])
