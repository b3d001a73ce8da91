"""A machine: phases and a table of guarded transitions as frozen data, proved sound when it is made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar, cast

from statemachine.definition import check, mistakes
from statemachine.definition.choice import Choice
from statemachine.definition.library import LibraryMachine
from statemachine.definition.migration import Migration
from statemachine.definition.phase import Phase, Wait
from statemachine.definition.program import Program, compile_program, library_program
from statemachine.definition.table import Edit, Signal, Transition, name_of, phases_of
from statemachine.errors import Finding, InvalidMachine

Context = TypeVar("Context")
Interpreter = Literal["compiled", "transitions"]


@dataclass(frozen=True, eq=False)
class Machine(Generic[Context]):
    """Phases joined by guarded transitions, over a context of any type.

    Parameters
    ----------
    name
        What the machine is called in diagrams, errors and records.
    start
        The phase a run begins at.
    transitions
        The table, in the order it is to be read. For every phase and every combination of its guards' values exactly
        one transition must be enabled.
    signals
        Inputs from outside that a run takes between two steps; at any phase at most one of a name.
    edits
        Changes that can be made to a resting run.
    version
        Counted up when records of earlier versions need to be read otherwise.
    migrations
        How records of earlier versions are to be read, one for each version whose names or outcomes changed.

    Raises
    ------
    InvalidMachine
        When the table is no sound machine; the exception carries all findings together.
    """

    name: str
    start: Phase[Context, Any]
    transitions: Sequence[Transition[Context]]
    signals: Sequence[Signal[Context, Any]] = ()
    edits: Sequence[Edit[Context, Any]] = ()
    version: int = 1
    migrations: Sequence[Migration] = ()
    transitions_machine: LibraryMachine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "transitions", tuple(self.transitions))
        object.__setattr__(self, "signals", tuple(self.signals))
        object.__setattr__(self, "edits", tuple(self.edits))
        object.__setattr__(self, "migrations", tuple(sorted(self.migrations, key=lambda step: step.version)))
        if findings := self.check():
            raise InvalidMachine(self.name, findings)
        phases = phases_of(self.start, self.transitions, self.signals)
        library = LibraryMachine(self.name, phases, self.start, self.transitions, self.signals)
        object.__setattr__(self, "transitions_machine", library)

    def check(self) -> list[Finding]:
        """Everything that is wrong with the table; empty for any machine that could be made."""
        if found := list(mistakes.find(self.start, self.transitions, self.signals, self.edits)):
            return found
        return [
            *check.find(self.start, self.transitions, self.signals, self.edits),
            *check.find_in_migrations(self.version, self.migrations),
        ]

    @property
    def phases(self) -> Mapping[str, Phase[Context, Any]]:
        """The phases by name, in order of appearance."""
        return cast(Mapping[str, Phase[Context, Any]], self.transitions_machine.states)

    @cached_property
    def _compiled(self) -> Program[Context]:
        return compile_program(self.transitions_machine, self.signals)

    def program(self, interpreter: Interpreter = "compiled") -> Program[Context]:
        """The machine in the form that an interpreter runs: the compiled table, or `transitions` itself."""
        if interpreter == "compiled":
            return self._compiled
        if interpreter == "transitions":
            return library_program(self.transitions_machine, self.signals)
        raise ValueError(f"no interpreter is called {interpreter!r}; there are 'compiled' and 'transitions'")

    def insert(
        self,
        phase: Phase[Context, Any],
        *,
        between: tuple[Phase[Context, Any] | str, Phase[Context, Any] | str] | None = None,
        before: Phase[Context, Any] | str | None = None,
    ) -> "Machine[Context]":
        """A new machine with `phase` spliced in; the same phase may be spliced in at several places.

        Parameters
        ----------
        between
            Into every transition that leads from the first of these phases to the second.
        before
            Into every way into this phase: transitions, signals that are taken elsewhere, and the start if it is the
            one.

        Raises
        ------
        ValueError
            When there is no such way.
        InvalidMachine
            When the result is no sound machine.
        """
        if (between is None) == (before is None):
            raise TypeError("say where to insert the phase: either between=(source, target) or before=target")
        source, target = ("", name_of(before)) if before is not None else map(name_of, between or ())
        sources = {source} if source else {*self.phases} - {phase.name}

        def leads_in(way: Transition[Context]) -> bool:
            return name_of(way.target) == target and name_of(way.source) in sources

        table = [replace(way, target=phase) if leads_in(way) else way for way in self.transitions]
        changed: dict[str, Any] = {}
        if before is not None:
            changed["signals"] = [
                replace(signal, to=phase)
                if name_of(signal.to) == target and {*map(name_of, signal.sources)} != {target}
                else signal
                for signal in self.signals
            ]
            changed["start"] = phase if self.start.name == target else self.start
        if table == list(self.transitions) and changed.get("start", self.start) is self.start:
            ways = ", ".join(str(transition) for transition in self.transitions)
            where = f"from {source!r} to {target!r}" if source else f"to {target!r}"
            raise ValueError(f"no transition leads {where} in {self.name!r}; there are: {ways}")
        if (onward := Transition(phase, self.phases[target])) not in table:
            table.append(onward)
        return replace(self, transitions=table, **changed)

    def signals_named(self, name: str) -> tuple[Signal[Context, Any], ...]:
        """The signals of this name, one or more, that all carry the same; raises ValueError naming those there are."""
        if found := self._signals_by_name.get(name):
            return found
        raise _unknown("signal", name, self.name, self.signals)

    @cached_property
    def _signals_by_name(self) -> dict[str, tuple[Signal[Context, Any], ...]]:
        names = dict.fromkeys(signal.name for signal in self.signals)
        return {name: tuple(signal for signal in self.signals if signal.name == name) for name in names}

    def edit(self, name: str) -> Edit[Context, Any]:
        """The edit of this name; raises ValueError naming those there are."""
        for edit in self.edits:
            if edit.name == name:
                return edit
        raise _unknown("edit", name, self.name, self.edits)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the table: equal for machines with the same phases, transitions, guards' names, values of choices
        and signals."""
        table: dict[str, Any] = {
            "name": self.name,
            "start": self.start.name,
            "phases": [
                [phase.name, "wait" if isinstance(phase, Wait) else phase.final] for phase in self.phases.values()
            ],
            "transitions": [str(transition) for transition in self.transitions],
            "signals": [
                [s.name, name_of(s.to), [*map(name_of, s.sources)]]
                + [s.condition, s.payload] * (s.when is not None or s.carries)
                for s in self.signals
            ],
            "edits": [[edit.name, *map(name_of, edit.sources)] if edit.sources else edit.name for edit in self.edits],
        } | ({"version": self.version} if self.version != 1 else {})
        choices = [
            [phase.name, atom.name, atom.values]
            for phase, atoms in zip(self._compiled.phases, self._compiled.atoms, strict=True)
            for atom in atoms
            if isinstance(atom, Choice)
        ]
        table |= {"choices": choices} if choices else {}
        return hashlib.sha256(json.dumps(table, ensure_ascii=True).encode()).hexdigest()


def _unknown(kind: str, name: str, machine: str, things: Sequence[Signal[Any, Any] | Edit[Any, Any]]) -> ValueError:
    known = ", ".join(dict.fromkeys(repr(thing.name) for thing in things))
    return ValueError(f"machine {machine!r} has no {kind} {name!r}; there are: {known or 'none'}")
