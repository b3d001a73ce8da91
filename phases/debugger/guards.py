"""The guards and choices of a machine, and what they say where a run rests."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from statemachine import Machine, Run
from statemachine.definition.variable import Value, Variable, in_words


@dataclass(frozen=True, slots=True)
class GuardTruth:
    """A guard or a choice of the present phase."""

    name: str
    truth: Value | None  # None: it cannot be evaluated here
    meaning: str = ""


def guards_of(machine: Machine[Any]) -> dict[str, Variable[Any]]:
    """Every guard and choice that some transition asks, by its name."""
    return {atom.name: atom for way in machine.transitions if way.when is not None for atom in way.when.atoms}


def words_of(machine: Machine[Any]) -> list[str]:
    """What its guards and choices can come to, each in words: `full`, `~full`, `route = tools`."""
    return [in_words({name: value}) for name, atom in guards_of(machine).items() for value in atom.values]


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
            truth = guard.value(run.context)
        found.append(GuardTruth(name, truth, " ".join((guard.predicate.__doc__ or "").split())))
    return tuple(found)
