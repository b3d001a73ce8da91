"""The guards of a machine, and what they say where a run rests."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statemachine import Guard, Machine, Run


@dataclass(frozen=True, slots=True)
class GuardTruth:
    """A guard of the present phase."""

    name: str
    truth: bool | None  # None: it cannot be evaluated here
    meaning: str = ""


def guards_of(machine: Machine[Any]) -> dict[str, Guard[Any]]:
    """Every guard that some transition asks, by its name."""
    return {atom.name: atom for way in machine.transitions if way.when is not None for atom in way.when.atoms}


def guard_truths(run: Run[Any]) -> tuple[GuardTruth, ...]:
    """The guards of the phase that runs next, as they are before it runs."""
    asked = {
        atom.name: atom
        for way in run.machine.transitions
        if way.when is not None and (way.source == run.phase or way.source == run.phase.name)
        for atom in way.when.atoms
    }
    found = []
    for name, guard in asked.items():
        truth = None
        with suppress(Exception):  # a guard is defined for what its phase leaves behind, which is not here yet
            truth = guard(run.context)
        found.append(GuardTruth(name, truth, " ".join((guard.predicate.__doc__ or "").split())))
    return tuple(found)
