"""Proves that a table is a sound machine, or lists everything that is wrong with it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from transitions import State

from statemachine.definition.guard import Guard
from statemachine.definition.migration import Migration
from statemachine.definition.phase import Phase
from statemachine.definition.table import ADVANCE, Edit, Signal, Transition, name_of, phases_of
from statemachine.errors import Finding

MAX_GUARDS = 8  # per phase: 2**8 rows of guard values are enumerated


def find(
    start: Phase[Any, Any],
    transitions: Sequence[Transition[Any]],
    signals: Sequence[Signal[Any, Any]] = (),
    edits: Sequence[Edit[Any, Any]] = (),
) -> list[Finding]:
    """All findings of a table, in the order of its phases; none means that no run of it can ever get stuck."""
    phases = phases_of(start, transitions, signals)
    findings = [*_names(phases, transitions, signals, edits), *_hooks(phases), *_signals(phases, signals)]
    edges = [(name_of(transition.source), name_of(transition.target)) for transition in transitions]
    jumps = [(source, name_of(signal.to)) for signal in signals for source in _sources(signal, phases)]
    reached = _closure({start.name}, edges + jumps)
    ending = _closure({phase.name for phase in phases if phase.final}, [(target, source) for source, target in edges])
    for phase in phases:
        leaving = [transition for transition in transitions if name_of(transition.source) == phase.name]
        if phase.name not in reached:
            findings.append(
                Finding("unreachable", phase.name, f"no way leads here from {start.name!r}",
                        "add a transition to it or take it out")
            )  # fmt: skip
        if phase.final:
            findings += (
                Finding("final", phase.name, f"has the transition {transition}, but a run ends here",
                        "make it a Phase instead of an End, or take the transition out")
                for transition in leaving
            )  # fmt: skip
            continue
        if phase.name not in ending:
            findings.append(
                Finding("no end", phase.name, "no transition leads from here to a final phase, directly or not",
                        "add a way to an End")
            )  # fmt: skip
        findings += _truth_table(phase.name, leaving)
    return findings


def find_in_migrations(version: int, migrations: Sequence[Migration]) -> Iterator[Finding]:
    """What is wrong with the migrations of a machine of this version."""
    for number, count in Counter(migration.version for migration in migrations).items():
        if count > 1:
            yield Finding("migration", str(number), f"{count} migrations read records of this version", "merge them")
        if not 1 <= number < version:
            yield Finding("migration", str(number), f"reads records of version {number}, the machine's is {version}",
                          f"name a version from 1 to {version - 1}, or count the machine's up")  # fmt: skip


def _names(
    phases: Sequence[Phase[Any, Any]],
    transitions: Sequence[Transition[Any]],
    signals: Sequence[Signal[Any, Any]],
    edits: Sequence[Edit[Any, Any]],
) -> Iterator[Finding]:
    known = Counter(phase.name for phase in phases)
    for name, count in known.items():
        if count > 1:
            yield Finding("duplicate name", name, f"{count} different phases are called so", "give each its own name")
    for name, count in Counter(edit.name for edit in edits).items():
        if count > 1:
            yield Finding("duplicate name", name, f"{count} edits are called so", "give each its own name")
    for name in known:
        if name in ("*", "="):
            yield Finding(
                "reserved name", name, "means every phase, or the same one, in the library", "rename the phase"
            )
    if any(signal.name == ADVANCE for signal in signals):
        yield Finding("reserved name", ADVANCE, "is the event that leaves a phase after it ran", "rename the signal")
    named: list[tuple[str, Phase[Any, Any] | str]] = []
    for transition in transitions:
        named += [(f"transition {transition}", transition.source), (f"transition {transition}", transition.target)]
    for signal in signals:
        named += [(f"signal {signal.name!r}", phase) for phase in (*signal.sources, signal.to)]
    for edit in edits:  # their sources are no part of the table, so they must be in it already
        named += [(f"edit {edit.name!r}", name_of(phase)) for phase in edit.sources]
    for where, phase in named:
        if isinstance(phase, str) and phase not in known:
            yield Finding("dangling", phase, f"{where} names it, but no phase is called so",
                          f"correct the name; phases: {', '.join(known)}")  # fmt: skip


def _hooks(phases: Sequence[Phase[Any, Any]]) -> Iterator[Finding]:
    for phase in phases:
        overridden = type(phase).enter is not State.enter or type(phase).exit is not State.exit
        if phase.on_enter or phase.on_exit or overridden:
            yield Finding("hook", phase.name, "has an enter or exit callback, which only one interpreter would call",
                          "move its work into run() and apply()")  # fmt: skip


def _sources(signal: Signal[Any, Any], phases: Sequence[Phase[Any, Any]]) -> list[str]:
    """The names of the phases at which a signal may be taken."""
    return [name_of(source) for source in signal.sources] or [phase.name for phase in phases if not phase.final]


def _signals(phases: Sequence[Phase[Any, Any]], signals: Sequence[Signal[Any, Any]]) -> Iterator[Finding]:
    """What is wrong with the signals: those of one name must exclude each other, as the ways from a phase must."""
    ends = {phase.name for phase in phases if phase.final}
    for name in dict.fromkeys(signal.name for signal in signals):
        entries = [signal for signal in signals if signal.name == name]
        places = Counter(source for signal in entries for source in dict.fromkeys(_sources(signal, phases)))
        if twice := [source for source, count in places.items() if count > 1]:
            yield Finding("ambiguous", name, f"several signals are called so at {', '.join(map(repr, twice))}",
                          "give each sources of its own")  # fmt: skip
        if len(carried := dict.fromkeys(signal.payload or "nothing" for signal in entries)) > 1:
            yield Finding("ambiguous", name, f"signals that are called so carry {' and '.join(carried)}",
                          "let all of them carry the same, or give them other names")  # fmt: skip
        for end in sorted(ends.intersection(places)):
            yield Finding("final", end, f"is a source of signal {name!r}, but a run ends here", "take it out of them")
    for signal in signals:
        if signal.when is not None:
            yield from _signal_guard(signal.name, signal.when)


def _signal_guard(name: str, when: Guard[Any]) -> Iterator[Finding]:
    """What is wrong with the guard of a signal."""
    repeated = [atom for atom, count in Counter(atom.name for atom in when.atoms).items() if count > 1]
    for atom in repeated:
        yield Finding("duplicate name", name, f"two different guards are called {atom!r}", "give each its own name")
    if len(when.atoms) > MAX_GUARDS:
        atoms = ", ".join(atom.name for atom in when.atoms)
        yield Finding("too many guards", name, f"{len(when.atoms)} guards ({atoms}), at most {MAX_GUARDS} can be "
                      "proved", "merge guards")  # fmt: skip
    elif not repeated and not any(when.holds(values) for values in rows_of(when.atoms)):
        yield Finding("never", name, f"the signal can never be taken, its guard {when.name} is false in every case",
                      "correct the guard or take the signal out")  # fmt: skip


def _closure(names: set[str], edges: Sequence[tuple[str, str]]) -> set[str]:
    """All names that the edges lead to from the given ones."""
    reached = set(names)
    frontier = list(names)
    while frontier:
        name = frontier.pop()
        fresh = {target for source, target in edges if source == name} - reached
        reached |= fresh
        frontier += fresh
    return reached


def atoms_of(transitions: Sequence[Transition[Any]]) -> tuple[Guard[Any], ...]:
    """The guards that these transitions are made of, in order of appearance: the bits of a row's number."""
    return tuple(dict.fromkeys(atom for way in transitions if way.when is not None for atom in way.when.atoms))


def rows_of(atoms: Sequence[Guard[Any]]) -> Iterator[dict[str, bool]]:
    """All values the guards can take together; the n-th assignment has guard i true where bit i of n is set."""
    for values in product((False, True), repeat=len(atoms)):
        yield {atom.name: value for atom, value in zip(atoms, reversed(values), strict=True)}


def enabled(leaving: Sequence[Transition[Any]], values: Mapping[str, bool]) -> list[int]:
    """Which of a phase's transitions may be taken when its guards have these values."""
    return [n for n, transition in enumerate(leaving) if transition.when is None or transition.when.holds(values)]


def _truth_table(phase: str, leaving: Sequence[Transition[Any]]) -> Iterator[Finding]:
    if not leaving:
        yield Finding("stuck", phase, "has no transition and is not final", "add a transition or make it an End")
        return
    atoms = atoms_of(leaving)
    repeated = [name for name, count in Counter(atom.name for atom in atoms).items() if count > 1]
    for name in repeated:
        yield Finding("duplicate name", phase, f"two different guards are called {name!r}", "give each its own name")
    if len(atoms) > MAX_GUARDS:
        names = ", ".join(atom.name for atom in atoms)
        yield Finding("too many guards", phase, f"{len(atoms)} guards ({names}), at most {MAX_GUARDS} can be proved",
                      "merge guards, or split the phase in two")  # fmt: skip
    if repeated or len(atoms) > MAX_GUARDS:
        return
    taken: set[int] = set()
    stuck: list[str] = []
    ambiguous: dict[tuple[int, ...], list[str]] = {}
    for values in rows_of(atoms):
        which = enabled(leaving, values)
        taken.update(which)
        if not which:
            stuck.append(_text(values))
        elif len(which) > 1:
            ambiguous.setdefault(tuple(which), []).append(_text(values))
    if stuck:
        yield Finding("stuck", phase, f"no transition is enabled when {' or '.join(stuck)}",
                      "add a transition for it, or widen a guard")  # fmt: skip
    for ways, rows in ambiguous.items():
        names = " and ".join(f"[{leaving[n]}]" for n in ways)
        yield Finding("ambiguous", phase, f"{names} are all enabled when {' or '.join(rows) or 'reached'}",
                      "make their guards exclude each other")  # fmt: skip
    for n, transition in enumerate(leaving):
        if n not in taken:
            yield Finding("never", phase, f"[{transition}] can never be taken, its guard is false in every case",
                          "correct the guard or take the transition out")  # fmt: skip


def _text(values: Mapping[str, bool]) -> str:
    return " & ".join(name if value else f"~{name}" for name, value in values.items())
