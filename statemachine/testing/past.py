"""What was noted of a run while it was moved, to compare it with when it is there again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from statemachine.definition.phase import Status

Place = tuple[str, Mapping[Any, Any]]  # the phase that a run rests at, and what of its context counts


@dataclass(slots=True)
class Past:
    """What the rules noted of a run."""

    places: list[Place]  # by number of steps, before the events there
    outcomes: list[Any] = field(default_factory=list)  # by number of the step, as a journal holds them
    tip: tuple[Place, Status] | None = None  # where the run was when it went back

    def cut(self, number: int) -> None:
        """The run moves on from after so many steps: if it had gone back, what lay ahead is forgotten."""
        del self.places[number + 1 :], self.outcomes[number:]
        self.tip = None

    def until(self, number: int) -> "Past":
        """The past of a second run that begins after so many steps."""
        return Past(self.places[: number + 1], self.outcomes[:number])
