"""Compiles the `transitions.Machine` to a table of tuples, once, for the hot loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from statemachine.definition.check import atoms_of, enabled
from statemachine.definition.guard import Guard
from statemachine.definition.library import LibraryMachine, LibraryTransition
from statemachine.definition.phase import Phase, Wait, enters_none
from statemachine.definition.raised import Raised
from statemachine.definition.table import ADVANCE, RAISED, Signal, Transition, name_of
from statemachine.definition.variable import Value, Variable, row_count, rows_of, values_at
from statemachine.errors import GuardError

Context = TypeVar("Context")
Select = Callable[[Context], int]


@dataclass(frozen=True, slots=True)
class Arc:
    """What a step decided: the phase that ran, the one to run next (indices), the transition's number and the row of
    the phase's truth table: of guards alone, the value of guard i is bit i. `raised` names the class of exceptions that
    the transition is for: only then is the step's outcome a `Raised`."""

    source: int
    target: int
    transition: int
    guards: int
    raised: str = ""


@dataclass(frozen=True, slots=True)
class Row(Generic[Context]):
    """What the loop needs at a phase: its two halves, how to choose an arc, and whether the run rests here."""

    run: Callable[[Context], Any]
    apply: Callable[[Context, Any], None]
    select: Select[Context] | None  # None: there is nothing to choose, arc 0 it is
    arcs: Sequence[Arc] | Mapping[int, Arc]
    rests: bool  # at an end, or to wait for an answer
    enters_none: bool


@dataclass(frozen=True, slots=True)
class ErrorWay(Generic[Context]):
    """What becomes of a phase that raised an exception of this class: how it is entered, and how to choose an arc."""

    kind: type[Exception]
    apply: Callable[[Context, Raised], None]
    select: Select[Context] | None
    arcs: Sequence[Arc] | Mapping[int, Arc]


@dataclass(frozen=True, slots=True)
class Door(Generic[Context]):
    """How a signal is taken at a phase: where it leads, when it may be taken, and what enters its payload."""

    target: int
    opens: Callable[[Context], bool] | None  # None: always
    apply: Callable[[Context, Any], None] | None  # None: it carries nothing


@dataclass(frozen=True, slots=True)
class Program(Generic[Context]):
    """A machine ready to run: one row a phase, the variables whose values an arc's `guards` number, a door a signal."""

    rows: tuple[Row[Context], ...]
    phases: tuple[Phase[Context, Any], ...]
    names: tuple[str, ...]  # of the phases, which would be asked for at every step
    atoms: tuple[tuple[Variable[Context], ...], ...]
    ways: tuple[Mapping[str, ErrorWay[Context]], ...]  # per phase, by the name of the class
    doors: tuple[Mapping[str, Door[Context]], ...]  # per phase, by the name of the signal
    always: tuple[str, ...]  # the signals that are taken at every phase that is not final, whatever the context
    cases: tuple[dict[int, dict[str, Value]], ...]  # per phase: the values in each row that was asked for

    def values_of(self, arc: Arc) -> dict[str, Value]:
        """The values that the guards and choices had where this arc was taken, by name."""
        cached = self.cases[arc.source].get(arc.guards)
        if cached is None:
            cached = values_at(arc.guards, ((atom.name, atom.values) for atom in self.atoms[arc.source]))
            self.cases[arc.source][arc.guards] = cached
        return cached.copy()

    def index_of(self, name: str) -> int:
        """The index of the phase of this name."""
        return self.names.index(name)

    def enter(self, index: int, context: Context, outcome: Any, raised: str = "") -> None:
        """Enter in a context what came of a phase: an outcome, or what was `raised`, by the name of its class."""
        row = self.rows[index]
        if raised:
            self.ways[index][raised].apply(context, outcome)
        elif outcome is not None or row.enters_none:
            row.apply(context, outcome)

    def step(self, index: int, context: Context, outcome: Any, raised: str = "") -> Arc:
        """Enter what came of a phase, as `enter` does, and say where that leads."""
        row = self.rows[index]
        way: Row[Context] | ErrorWay[Context] = row
        if raised:
            way = self.ways[index][raised]
        if outcome is not None or row.enters_none:
            way.apply(context, outcome)
        select = way.select
        return way.arcs[0] if select is None else way.arcs[select(context)]


def compile_program(machine: LibraryMachine, signals: Sequence[Signal[Any, Any]]) -> Program[Any]:
    """The fast interpreter: guards to a row's number, that to an arc, by two look-ups."""
    return _program(machine, signals, _compiled_choice, _compiled_door)


def library_program(machine: LibraryMachine, signals: Sequence[Signal[Any, Any]]) -> Program[Any]:
    """The slow and obvious interpreter: `transitions` itself evaluates the guards and chooses."""
    return _program(machine, signals, _library_choice, _library_door)


def _program(
    machine: LibraryMachine,
    signals: Sequence[Signal[Any, Any]],
    choose: Callable[..., Any],
    opening: Callable[..., Callable[[Any], bool] | None],
) -> Program[Any]:
    phases: tuple[Phase[Any, Any], ...] = tuple(machine.states.values())  # type: ignore[arg-type]  # only Phases are added
    index = {phase.name: number for number, phase in enumerate(phases)}
    rows, atoms, ways = [], [], []
    for source, phase in enumerate(phases):
        leaving = _leaving(machine, phase)
        table = {way.number: way for found in leaving.values() for way in found}
        variables = atoms_of([_as_row(table[number]) for number in sorted(table)])
        chosen = {
            event: choose(machine, phase, event, variables, _arcs(source, found, variables, index))
            for event, found in leaving.items()
        }
        rests = phase.final or isinstance(phase, Wait)
        select, arcs = chosen.pop(ADVANCE)
        rows.append(Row(phase.run, phase.apply, select, arcs, rests, enters_none(phase)))
        ways.append({
            kind.__name__: ErrorWay(kind, phase.apply_error, *chosen[event])
            for event in chosen if (kind := leaving[event][0].kind)
        })  # fmt: skip
        atoms.append(variables)
    doors = tuple(_doors(machine, phase, signals, index, opening) for phase in phases)
    return Program(
        tuple(rows), phases, tuple(phase.name for phase in phases), tuple(atoms), tuple(ways), doors,
        _always(phases, signals, doors), tuple({} for _ in phases),
    )  # fmt: skip


def _doors(
    machine: LibraryMachine,
    phase: Phase[Any, Any],
    signals: Sequence[Signal[Any, Any]],
    index: Mapping[str, int],
    opening: Callable[..., Callable[[Any], bool] | None],
) -> dict[str, Door[Any]]:
    """The signals that a phase takes."""
    own = [] if phase.final else [s for s in signals if not s.sources or phase.name in map(name_of, s.sources)]
    return {s.name: Door(index[name_of(s.to)], opening(machine, phase, s), s.apply if s.carries else None) for s in own}


def _always(
    phases: Sequence[Phase[Any, Any]], signals: Sequence[Signal[Any, Any]], doors: Sequence[Mapping[str, Door[Any]]]
) -> tuple[str, ...]:
    open_doors = [
        {name for name, door in own.items() if door.opens is None}
        for phase, own in zip(phases, doors, strict=True) if not phase.final
    ]  # fmt: skip
    return tuple(name for name in dict.fromkeys(s.name for s in signals) if all(name in own for own in open_doors))


def _leaving(machine: LibraryMachine, phase: Phase[Any, Any]) -> dict[str, list[LibraryTransition]]:
    """The transitions that leave a phase, by event: after an outcome, and after each class of exceptions."""
    found: dict[str, list[LibraryTransition]] = {ADVANCE: []}
    for event in machine.events.values():
        if event.name == ADVANCE or event.name.startswith(RAISED):
            found[event.name] = event.transitions.get(phase.name, [])  # type: ignore[assignment]  # only these are added
    return {event: ways for event, ways in found.items() if ways or event == ADVANCE}


def _arcs(
    source: int, leaving: Sequence[LibraryTransition], atoms: Sequence[Variable[Any]], index: Mapping[str, int]
) -> tuple[Arc, ...]:
    """One arc for each row of the truth table."""
    table = [*map(_as_row, leaving)]
    return tuple(
        Arc(source, index[str(way.dest)], way.number, row, way.kind.__name__ if way.kind else "")
        for row, values in enumerate(rows_of(atoms))
        for way in [leaving[n] for n in enabled(table, values)]
    )


def _as_row(way: LibraryTransition) -> Transition[Any]:
    return Transition(way.source, str(way.dest), way.guard)


def _compiled_choice(
    machine: LibraryMachine, phase: Phase[Any, Any], event: str, atoms: Sequence[Variable[Any]], arcs: tuple[Arc, ...]
) -> tuple[Select[Any] | None, tuple[Arc, ...]]:
    return row_of(atoms) if atoms else None, arcs


def _compiled_door(
    machine: LibraryMachine, phase: Phase[Any, Any], signal: Signal[Any, Any]
) -> Callable[[Any], bool] | None:
    return signal.when


def row_of(atoms: Sequence[Variable[Any]]) -> Select[Any]:
    """A function that evaluates all variables on a context, and gives the number of the row: of guards, i in bit i."""
    if not all(isinstance(atom, Guard) for atom in atoms):
        return _row_of_any(atoms)
    if len(atoms) == 1:
        (name, predicate) = atoms[0].name, atoms[0].predicate

        def one(context: Any) -> int:
            try:
                value = predicate(context)
            except Exception as error:
                raise GuardError(name, error) from error
            if value is True:
                return 1  # a place in a tuple is faster found by an int than by a bool
            if value is False:
                return 0
            raise GuardError(name, value)

        return one
    weighed = tuple((1 << bit, atom.predicate, atom.name) for bit, atom in enumerate(atoms))

    def several(context: Any) -> int:
        bits, name = 0, ""
        try:
            for weight, predicate, name in weighed:
                value = predicate(context)
                if value is True:
                    bits += weight
                elif value is not False:
                    raise GuardError(name, value)
        except GuardError:
            raise
        except Exception as error:
            raise GuardError(name, error) from error
        return bits

    return several


def _row_of_any(atoms: Sequence[Variable[Any]]) -> Select[Any]:
    if len(atoms) == 1:
        return atoms[0].place
    places = [atom.place for atom in atoms]
    weighed = tuple((row_count(atom.values for atom in atoms[:n]), place) for n, place in enumerate(places))

    def several(context: Any) -> int:
        row = 0
        for weight, place in weighed:
            row += weight * place(context)
        return row

    return several


class _Cursor:
    """The model that the library moves: it stands at a phase, so that the context need not."""

    __slots__ = ("state",)
    state: str


def _library_choice(
    machine: LibraryMachine, phase: Phase[Any, Any], event: str, atoms: Sequence[Variable[Any]], arcs: tuple[Arc, ...]
) -> tuple[Select[Any] | None, Mapping[int, Arc]]:
    if phase.final:
        return None, {}
    width, row = row_count(atom.values for atom in atoms), row_of(atoms)
    numbers = {(machine.states[name].name): number for number, name in enumerate(machine.states)}

    def select(context: Any) -> int:
        cursor = _Cursor()
        cursor.state = phase.name
        machine.events[event].trigger(cursor, context)
        return numbers[cursor.state] * width + row(context)

    return select, {arc.target * width + arc.guards: arc for arc in arcs}


def _library_door(
    machine: LibraryMachine, phase: Phase[Any, Any], signal: Signal[Any, Any]
) -> Callable[[Any], bool] | None:
    if signal.when is None:
        return None

    def opens(context: Any) -> bool:
        cursor = _Cursor()
        cursor.state = phase.name
        return bool(machine.events[signal.name].trigger(cursor, context))

    return opens
