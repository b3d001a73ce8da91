"""Compiles the `transitions.Machine` to a table of tuples, once, for the hot loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from statemachine.definition.check import atoms_of, enabled, rows_of
from statemachine.definition.guard import Guard
from statemachine.definition.library import LibraryMachine, LibraryTransition
from statemachine.definition.phase import Phase, Wait, enters_none
from statemachine.definition.table import ADVANCE, Signal, Transition, name_of
from statemachine.errors import GuardError

Context = TypeVar("Context")
Select = Callable[[Context], int]


class Arc(NamedTuple):
    """What a step decided: the phase that ran, the one to run next (indices), the transition's number and the
    values of the phase's guards, guard i in bit i."""

    source: int
    target: int
    transition: int
    guards: int


class Row(NamedTuple, Generic[Context]):
    """What the loop needs at a phase: its two halves, how to choose an arc, and whether the run rests here."""

    run: Callable[[Context], Any]
    apply: Callable[[Context, Any], None]
    select: Select[Context] | None  # None: there is nothing to choose, arc 0 it is
    arcs: Sequence[Arc] | Mapping[int, Arc]
    rests: bool  # at an end, or to wait for an answer
    enters_none: bool


class Door(NamedTuple, Generic[Context]):
    """How a signal is taken at a phase: where it leads, when it may be taken, and what enters its payload."""

    target: int
    opens: Callable[[Context], bool] | None  # None: always
    apply: Callable[[Context, Any], None] | None  # None: it carries nothing


@dataclass(frozen=True, slots=True)
class Program(Generic[Context]):
    """A machine ready to run: one row a phase, the guards whose values an arc's bits give, a door for each signal."""

    rows: tuple[Row[Context], ...]
    phases: tuple[Phase[Context, Any], ...]
    names: tuple[str, ...]  # of the phases, which would be asked for at every step
    atoms: tuple[tuple[Guard[Context], ...], ...]
    doors: tuple[Mapping[str, Door[Context]], ...]  # by the phase, and the name of the signal
    always: tuple[str, ...]  # the signals that are taken at every phase that is not final, whatever the context

    def index_of(self, name: str) -> int:
        """The index of the phase of this name."""
        return self.names.index(name)


def compile_program(machine: LibraryMachine, signals: Sequence[Signal[Any, Any]]) -> Program[Any]:
    """The fast interpreter: guards to bits, bits to an arc, by two look-ups."""
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
    advance = machine.events[ADVANCE].transitions
    rows, atoms, doors = [], [], []
    for source, phase in enumerate(phases):
        leaving: list[LibraryTransition] = advance.get(phase.name, [])  # type: ignore[assignment]
        table = [Transition(way.source, str(way.dest), way.guard) for way in leaving]
        atoms.append(atoms_of(table))
        arcs = []
        for bits, values in enumerate(rows_of(atoms[-1])):
            arcs += [Arc(source, index[str(leaving[n].dest)], leaving[n].number, bits) for n in enabled(table, values)]
        select, table_of_arcs = choose(machine, phase, atoms[-1], tuple(arcs))
        rests = phase.final or isinstance(phase, Wait)
        rows.append(Row(phase.run, phase.apply, select, table_of_arcs, rests, enters_none(phase)))
        own = [] if phase.final else [s for s in signals if not s.sources or phase.name in map(name_of, s.sources)]
        doors.append({
            s.name: Door(index[name_of(s.to)], opening(machine, phase, s), s.apply if s.carries else None) for s in own
        })  # fmt: skip
    open_doors = [
        {name for name, door in own.items() if door.opens is None}
        for phase, own in zip(phases, doors, strict=True) if not phase.final
    ]  # fmt: skip
    names = dict.fromkeys(signal.name for signal in signals)
    return Program(
        tuple(rows), phases, tuple(phase.name for phase in phases), tuple(atoms), tuple(doors),
        tuple(name for name in names if all(name in own for own in open_doors)),
    )  # fmt: skip


def _compiled_choice(
    machine: LibraryMachine, phase: Phase[Any, Any], atoms: Sequence[Guard[Any]], arcs: tuple[Arc, ...]
) -> tuple[Select[Any] | None, tuple[Arc, ...]]:
    return bits_of(atoms) if atoms else None, arcs


def _compiled_door(
    machine: LibraryMachine, phase: Phase[Any, Any], signal: Signal[Any, Any]
) -> Callable[[Any], bool] | None:
    return signal.when


def bits_of(atoms: Sequence[Guard[Any]]) -> Select[Any]:
    """A function that evaluates all guards on a context: guard i in bit i."""
    if len(atoms) == 1:
        (name, predicate) = atoms[0].name, atoms[0].predicate

        def one(context: Any) -> int:
            try:
                value = predicate(context)
            except Exception as error:
                raise GuardError(name, error) from error
            if value is True or value is False:
                return value
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


class _Cursor:
    """The model that the library moves: it stands at a phase, so that the context need not."""

    __slots__ = ("state",)
    state: str


def _library_choice(
    machine: LibraryMachine, phase: Phase[Any, Any], atoms: Sequence[Guard[Any]], arcs: tuple[Arc, ...]
) -> tuple[Select[Any] | None, Mapping[int, Arc]]:
    if phase.final:
        return None, {}
    width = len(atoms)
    bits = bits_of(atoms)
    numbers = {(machine.states[name].name): number for number, name in enumerate(machine.states)}

    def select(context: Any) -> int:
        cursor = _Cursor()
        cursor.state = phase.name
        machine.events[ADVANCE].trigger(cursor, context)
        return numbers[cursor.state] << width | bits(context)

    return select, {arc.target << width | arc.guards: arc for arc in arcs}


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
