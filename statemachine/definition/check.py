"""Proves that a table is a sound machine, or lists everything that is wrong with it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transitions import State

from statemachine.definition.guard import Guard
from statemachine.definition.migration import Migration
from statemachine.definition.phase import Phase, Wait
from statemachine.definition.table import ADVANCE, RAISED, Edit, Signal, Transition, name_of, phases_of
from statemachine.definition.variable import Value, Variable, cases_in_words, row_count, rows_of
from statemachine.errors import Finding

MAX_CASES = 1024  # per phase: rows of its truth table, which are enumerated


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
    waits = {phase.name for phase in phases if isinstance(phase, Wait)}  # for an answer or a signal: both are ways on
    onward = edges + [(source, target) for source, target in jumps if source in waits]
    ending = _closure({phase.name for phase in phases if phase.final}, [(target, source) for source, target in onward])
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
        if not leaving and phase.name in waits.intersection(source for source, _ in jumps):  # signals alone lead on
            if isinstance(phase, Wait) and type(phase).deadline is not Wait.deadline:
                findings.append(
                    Finding("stuck", phase.name, "has a deadline, but no transition to take once that has passed",
                            "add a transition, or let it wait for signals alone, without a deadline")
                )  # fmt: skip
            continue
        findings += _classes(phase, leaving)
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
    for name in dict.fromkeys(signal.name for signal in signals):
        if name == ADVANCE or name.startswith(RAISED):
            yield Finding("reserved name", name, "is an event that leaves a phase after it ran", "rename the signal")
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
        yield Finding("duplicate name", name, f"two different guards or choices are called {atom!r}",
                      "give each its own name")  # fmt: skip
    if (cases := row_count(atom.values for atom in when.atoms)) > MAX_CASES:
        yield _too_many(name, when.atoms, cases, "merge guards")
    elif not repeated and not any(when.holds(values) for values in rows_of(when.atoms)):
        yield Finding("never", name, f"the signal can never be taken, its guard {when.name} is false in every case",
                      "correct the guard or take the signal out")  # fmt: skip


def _too_many(where: str, atoms: Sequence[Variable[Any]], cases: int, remedy: str) -> Finding:
    names = ", ".join(atom.name for atom in atoms)
    what = (
        f"{len(atoms)} guards and choices ({names}) have {cases:,} cases together, at most {MAX_CASES:,} can be proved"
    )
    return Finding("too many cases", where, what, remedy)


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


def _classes(phase: Phase[Any, Any], leaving: Sequence[Transition[Any]]) -> Iterator[Finding]:
    """What is wrong with the classes of exceptions that ways from a phase are for."""
    ways = [transition for transition in leaving if transition.classes]
    if isinstance(phase, Wait):
        for transition in ways:
            yield Finding("never", phase.name, f"[{transition}] can never be taken, a Wait runs nothing that raises",
                          "take the transition out")  # fmt: skip
    classes = list(dict.fromkeys(kind for transition in ways for kind in transition.classes))
    for name, count in Counter(kind.__name__ for kind in classes).items():
        if count > 1:
            yield Finding("duplicate name", phase.name, f"{count} different exceptions are called {name!r}",
                          "give each its own name")  # fmt: skip
    for kind in classes:
        for other in classes:
            if kind is not other and issubclass(kind, other):
                yield Finding("ambiguous", phase.name, f"{kind.__name__} is a {other.__name__} too, and there are ways "
                              "for both", "list classes of which none is a subclass of another")  # fmt: skip


def atoms_of(transitions: Sequence[Transition[Any]]) -> tuple[Variable[Any], ...]:
    """The guards and choices that these transitions are made of, in order of appearance: the columns of a table."""
    return tuple(dict.fromkeys(atom for way in transitions if way.when is not None for atom in way.when.atoms))


def enabled(leaving: Sequence[Transition[Any]], values: Mapping[str, Value]) -> list[int]:
    """Which of a phase's transitions may be taken when its variables have these values."""
    return [n for n, transition in enumerate(leaving) if transition.when is None or transition.when.holds(values)]


def _truth_table(phase: str, leaving: Sequence[Transition[Any]]) -> Iterator[Finding]:
    if not leaving:
        yield Finding("stuck", phase, "has no transition and is not final", "add a transition or make it an End")
        return
    atoms = atoms_of(leaving)
    repeated = [name for name, count in Counter(atom.name for atom in atoms).items() if count > 1]
    for name in repeated:
        yield Finding("duplicate name", phase, f"two different guards or choices are called {name!r}",
                      "give each its own name")  # fmt: skip
    if (cases := row_count(atom.values for atom in atoms)) > MAX_CASES:
        yield _too_many(phase, atoms, cases, "merge guards, or split the phase in two")
    if repeated or cases > MAX_CASES:
        return
    for kind in dict.fromkeys((None, *(kind for transition in leaving for kind in transition.classes))):
        ways = [way for way in leaving if (kind in way.classes if kind else not way.classes)]
        yield from _ways(phase, ways, atoms, f" on {kind.__name__}" if kind else "")
    taken = {n for values in rows_of(atoms) for n in enabled(leaving, values)}
    for n, transition in enumerate(leaving):
        if n not in taken:
            yield Finding("never", phase, f"[{transition}] can never be taken, its guard is false in every case",
                          "correct the guard or take the transition out")  # fmt: skip


def _ways(phase: str, leaving: Sequence[Transition[Any]], atoms: Sequence[Variable[Any]], on: str) -> Iterator[Finding]:
    """Whether the ways for one kind of end of a phase are complete and exclusive; `on` names it."""
    stuck: list[dict[str, Value]] = []
    ambiguous: dict[tuple[int, ...], list[dict[str, Value]]] = {}
    for values in rows_of(atoms):
        which = enabled(leaving, values)
        if not which:
            stuck.append(values)
        elif len(which) > 1:
            ambiguous.setdefault(tuple(which), []).append(values)
    if stuck:
        yield Finding("stuck", phase, f"no transition is enabled{on} when {cases_in_words(atoms, stuck) or 'reached'}",
                      "add a transition for it, or widen a guard")  # fmt: skip
    for ways, rows in ambiguous.items():
        names, cases = " and ".join(f"[{leaving[n]}]" for n in ways), cases_in_words(atoms, rows) or "reached"
        yield Finding("ambiguous", phase, f"{names} are all enabled{on} when {cases}",
                      "make their guards exclude each other")  # fmt: skip
