"""The traffic lights of the examples, with what else a machine can have: an edit, and a phase that waits."""

from dataclasses import replace

from traffic_lights import Crossing, new_context
from traffic_lights import machine as crossing

from statemachine import Edit

__all__ = ["Crossing", "machine", "new_context"]


class Arrive(Edit[Crossing, int]):
    def run(self, context: Crossing, *, cars: int) -> int:  # type: ignore[override]
        if cars < 1:
            raise ValueError(f"expected at least one car, not {cars}")
        return cars

    def apply(self, context: Crossing, outcome: int) -> None:
        context.waiting += outcome


machine = replace(crossing, edits=[Arrive("arrive")])
