"""Prefill: all prompt tokens of every row go through the model at once and fill its KV cache."""

from phases.context import Generation
from statemachine import Phase


class Prefill(Phase[Generation, None]):
    """Leaves the logits of each row's last prompt token in `buffers.logits`."""

    def run(self, context: Generation) -> None:
        context.bound_engine.prefill(context.slots)
