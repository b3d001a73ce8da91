"""A phase before Sample that changes logits: what a user writes to have a say in which tokens come."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from phases.context import Generation
from phases.token_ids import Count
from statemachine import Machine, Phase

Counts = tuple[Count, ...]


def adjusters_of(machine: Machine[Generation]) -> Mapping[str, Callable[[Generation, int], int]]:
    """What each phase of a machine that adjusts logits does to a row's, by the name of the phase."""
    return {name: phase.adjust_row for name, phase in machine.phases.items() if isinstance(phase, LogitsPhase)}


class LogitsPhase(Phase[Generation, Counts]):
    """Changes the logits of each live row before its token is drawn: override `adjust`.

    Join it to a machine by `machine.insert(phase, before="sample")`. Its outcome is how many tokens each live row may
    still draw. Logits that are made anew, after the run went back in time or was resumed, are adjusted anew.
    """

    def adjust(self, context: Generation, row: int, logits: npt.NDArray[np.float32]) -> None:
        """Change a row's logits, [vocab] float32, in place: -inf makes a token impossible.

        What is done must depend on nothing but the request, `prompt_ids` and `output_ids` of the context, and what the
        phase was made with: it is done again where logits are made anew.
        """
        raise NotImplementedError(f"phase {self.name!r} is a LogitsPhase without adjust(context, row, logits)")

    def adjust_row(self, context: Generation, row: int) -> int:
        """Have a row's logits changed where they are, and give how many tokens it may draw."""
        engine, slot = context.bound_engine, context.slots[row]
        logits = engine.read_logits(slot)
        self.adjust(context, row, logits)
        engine.write_logits(slot, logits)
        return int(np.count_nonzero(np.isfinite(logits)))

    def run(self, context: Generation) -> Counts:
        context.fresh_logits()
        return tuple(self.adjust_row(context, row) for row in context.live)

    def apply(self, context: Generation, outcome: Counts) -> None:
        context.adjusted = (*context.adjusted, self.name)
