"""Watches every half of every step of a machine: what `run`, `apply` and guards may touch, and what not."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Generic, NoReturn, TypeVar
from zlib import crc32

from statemachine.definition.machine import Interpreter, Machine
from statemachine.definition.phase import Phase
from statemachine.definition.program import Door, ErrorWay, Program, Row
from statemachine.definition.table import Edit, Signal, name_of
from statemachine.definition.variable import Value, Variable
from statemachine.errors import GuardError, JournalError
from statemachine.execution import host_state
from statemachine.record.exact import Owner, fields, plain, typed
from statemachine.testing.hidden import generators_of
from statemachine.testing.same import differences, same, shown

Context = TypeVar("Context")
State = Callable[[Context], Mapping[Any, Any]]
Chosen = Row[Context] | ErrorWay[Context]
Addresses = Callable[[Context], Mapping[str, int]]

KEYED = (
    "key what is random by the context, and read no clock, or let Resources.sync put back what the step changed "
    "besides the host fields"
)


class BrokenRule(AssertionError):
    """What a machine does against the rules, and what to mend."""


class Watch(Generic[Context]):
    """Checks a machine while it runs; the first rule that is broken stays in `broken`, whoever swallows the error.

    Parameters
    ----------
    state
        What of a context counts, copied.
    pinned
        The addresses of a context's buffers, by name.
    sync
        Makes what stands behind a context agree with its host fields.
    """

    def __init__(
        self, state: State[Context], pinned: Addresses[Context], sync: Callable[[Context], None] = lambda context: None
    ) -> None:
        self.state = state
        self.broken: BrokenRule | None = None
        self.storm = 0  # which of the phases raise what their ways are for, and where; 0: none does
        self._pinned, self._sync = pinned, sync
        self._twice = True
        self._signals: Mapping[str, tuple[Signal[Context, Any], ...]] = {}
        self._homes: dict[int, tuple[Context, Mapping[str, int]]] = {}  # by id of the context, which is kept alive

    def breach(self, message: str) -> NoReturn:
        """Raise BrokenRule: the first one, for what is broken later may follow from it."""
        self.broken = self.broken or BrokenRule(message)
        raise self.broken

    def machine(self, machine: Machine[Context]) -> Machine[Context]:
        """A machine with the same table and fingerprint, each of whose steps is watched."""
        watched = _WatchedMachine(
            machine.name,
            machine.start,
            machine.transitions,
            signals=machine.signals,
            edits=machine.edits,
            version=machine.version,
            migrations=machine.migrations,
        )
        watched.__dict__["watch"] = self
        self._signals = {signal.name: machine.signals_named(signal.name) for signal in machine.signals}
        return watched

    @contextmanager
    def once(self) -> Iterator[None]:
        """Let no phase run a second time meanwhile."""
        self._twice = False
        try:
            yield
        finally:
            self._twice = True

    def program(self, program: Program[Context], other: Program[Context]) -> Program[Context]:
        """A program that does what `program` does, watched, and compares its choices with those of `other`."""
        rows = tuple(
            Row(
                self._watched_run(phase, row, [way.kind for way in ways.values()]),
                self._watched_apply(phase, row.apply),
                self._watched_select(phase, row, other_row, atoms) if atoms else row.select,
                row.arcs,
                row.rests,
                row.enters_none,
            )
            for phase, row, other_row, atoms, ways in zip(
                program.phases, program.rows, other.rows, program.atoms, program.ways, strict=True
            )
        )
        ways = tuple(
            {
                name: ErrorWay(
                    way.kind,
                    self._watched_apply(phase, way.apply),
                    self._watched_select(phase, way, others[name], atoms) if atoms else way.select,
                    way.arcs,
                )
                for name, way in own.items()
            }
            for phase, own, others, atoms in zip(program.phases, program.ways, other.ways, program.atoms, strict=True)
        )
        doors = tuple(
            {name: self._watched_door(name, phase, door, theirs[name]) for name, door in own.items()}
            for phase, own, theirs in zip(program.phases, program.doors, other.doors, strict=True)
        )
        return replace(program, rows=rows, ways=ways, doors=doors)

    def _watched_door(
        self, name: str, phase: Phase[Context, Any], door: Door[Context], other: Door[Context]
    ) -> Door[Context]:
        """A door that does what `door` does, watched; it asks each of the guards that its own is made of."""
        (signal,) = (s for s in self._signals[name] if not s.sources or phase.name in map(name_of, s.sources))
        atoms = signal.when.atoms if signal.when is not None else ()

        def opens(context: Context) -> bool:
            assert door.opens is not None
            assert other.opens is not None
            self._check_guards(atoms, context)
            mine, theirs = door.opens(context), other.opens(context)
            if mine is not theirs or door.target != other.target:
                self.breach(
                    f"one interpreter takes signal {name!r} at {phase.name!r}, the other does not, for the same "
                    "context: one of its guards is not pure"
                )
            return mine

        def apply(context: Context, payload: Any) -> None:
            assert door.apply is not None
            self.check_apply(signal, door.apply, context, payload)

        return Door(
            door.target, None if door.opens is None else opens, None if door.apply is None else apply
        )  # fmt: skip

    def check_buffers(self, context: Context, who: str) -> None:
        """See that every buffer is where it was when this context was first seen."""
        found = dict(self._pinned(context))
        _, homes = self._homes.setdefault(id(context), (context, found))
        for name, home in homes.items():
            if name not in found:
                self.breach(f"{who} took buffer {name!r} away: bind it once and keep it")
            if found[name] != home:
                self.breach(
                    f"{who} moved buffer {name!r} from {home:#x} to {found[name]:#x}: bind it once and write into it"
                )

    def check_recordable(self, owner: Owner, outcome: Any) -> None:
        """See that an outcome, or what a signal carries, comes back from a journal as it went in."""
        kind = kind_of(owner)
        try:
            back = typed(plain(outcome), owner)
        except (TypeError, ValueError, JournalError) as error:
            self.breach(
                f"outcome {shown(outcome)} of {kind} {owner.name!r} cannot be recorded: {error}; "
                "make it of numbers, text, lists and dataclasses"
            )
        if not same(back, outcome):
            self.breach(
                f"outcome {shown(outcome)} of {kind} {owner.name!r} comes back from a journal as {shown(back)}: "
                f"declare its type, class {type(owner).__name__}({kind.title()}[..., {type(outcome).__name__}]), or "
                "choose one that JSON can hold"
            )

    def _watched_run(
        self, phase: Phase[Context, Any], row: Row[Context], kinds: Sequence[type[Exception]]
    ) -> Callable[[Context], Any]:
        def run(context: Context) -> Any:
            self.check_buffers(context, "somebody")
            before, generators = self.state(context), generators_of(phase)
            try:
                outcome = row.run(context)
                if struck := self._struck(phase, context, kinds):  # after it worked: its buffers are as it left them
                    raise struck
            except Exception:
                if changed := differences(before, self.state(context)):
                    self.breach(f"phase {phase.name!r} changes {', '.join(changed)} in run(), and raises: let "
                                "apply_error() enter what is to stay")  # fmt: skip
                raise
            drawn = [name for name, state in generators_of(phase).items() if state != generators.get(name)]
            if changed := differences(before, self.state(context)):
                self.breach(f"phase {phase.name!r} changes {', '.join(changed)} in run(): move that into apply()")
            self.check_buffers(context, f"phase {phase.name!r}")
            if outcome is not None:
                self.check_recordable(phase, outcome)
            return self._again(phase, row, context, outcome, drawn) if self._twice else outcome

        return run

    def _struck(
        self, phase: Phase[Context, Any], context: Context, kinds: Sequence[type[Exception]]
    ) -> Exception | None:
        """What this phase raises here in this storm, of what the table has ways for: always the same at one place."""
        if not self.storm or not kinds:
            return None
        held, _ = fields(context, host_state.save(context))
        place = crc32(f"{self.storm} {phase.name} {sorted(held.items())}".encode(errors="backslashreplace"))
        number = place % (len(kinds) + 1 + self.storm % 3)
        return _made(kinds[number]) if number < len(kinds) else None

    def _again(
        self, phase: Phase[Context, Any], row: Row[Context], context: Context, outcome: Any, drawn: Sequence[str]
    ) -> Any:
        """Run the phase once more on the same context, and see that it comes to the same."""
        given = copy.deepcopy(outcome)
        self._sync(context)
        second = row.run(context)
        if not same(given, second):
            self.breach(
                f"phase {phase.name!r} gives another outcome when it runs again on the same context "
                f"({shown(given)}, then {shown(second)}): {KEYED}"
            )
        if drawn:
            self.breach(
                f"phase {phase.name!r} draws from {' and '.join(drawn)}, so that sooner or later it gives another "
                "outcome when it runs again on the same context: key what is random by the context"
            )
        return second

    def _watched_apply(
        self, phase: Phase[Context, Any], enter: Callable[[Context, Any], None]
    ) -> Callable[[Context, Any], None]:
        def apply(context: Context, outcome: Any) -> None:
            self.check_apply(phase, enter, context, outcome)

        return apply

    def check_apply(
        self,
        owner: Owner,
        apply: Callable[[Context, Any], None],
        context: Context,
        outcome: Any,
    ) -> None:
        """Apply an outcome, twice from the same fields, and see that it comes to the same and leaves the outcome."""
        kind = kind_of(owner)
        given, before = copy.deepcopy(outcome), host_state.save(context)
        apply(context, outcome)
        once = self.state(context)
        if not same(given, outcome):
            self.breach(
                f"{kind} {owner.name!r} changes its outcome in apply() ({shown(given)}, then {shown(outcome)}): copy it"
            )
        host_state.restore(context, before)
        apply(context, outcome)
        if changed := differences(once, self.state(context)):
            self.breach(
                f"{kind} {owner.name!r} makes something else of {', '.join(changed)} when apply() gets the same "
                "context and outcome again: it may use nothing else; what it needs belongs into the outcome"
            )
        self.check_buffers(context, f"apply() of {kind} {owner.name!r}")

    def _watched_select(
        self, phase: Phase[Context, Any], row: Chosen[Context], other: Chosen[Context],
        atoms: tuple[Variable[Context], ...],
    ) -> Callable[[Context], int]:  # fmt: skip
        assert row.select is not None
        assert other.select is not None
        mine, theirs = row.select, other.select

        def select(context: Context) -> int:
            self._check_guards(atoms, context)
            key = mine(context)
            taken, also = row.arcs[key], other.arcs[theirs(context)]
            if taken != also:
                self.breach(
                    f"after phase {phase.name!r} one interpreter takes transition {taken.transition}, the other "
                    f"{also.transition}, for the same context: one of its guards is not pure"
                )
            return key

        return select

    def _check_guards(self, atoms: Sequence[Variable[Context]], context: Context) -> None:
        """Ask each guard twice, and see that it says the same and changes nothing."""
        for atom in atoms:
            before = self.state(context)
            first, second = self._value(atom, context), self._value(atom, context)
            if first != second:
                self.breach(
                    f"guard {atom.name!r} gave {first}, then {second} for the same context: a guard must be pure"
                )
            if changed := differences(before, self.state(context)):
                self.breach(f"guard {atom.name!r} changes {', '.join(changed)}: a guard must be pure")

    def _value(self, atom: Variable[Context], context: Context) -> Value:
        try:
            return atom.value(context)
        except GuardError as error:
            if error.__cause__ is None:
                self.breach(str(error))
            self.breach(
                f"{error}; a guard must have a value for every context that its phase leaves behind, whatever the "
                "other guards say"
            )


def _made(kind: type[Exception]) -> Exception:
    """An exception of this class, whatever it needs to be made."""
    with suppress(Exception):
        return kind("raised by the test")
    with suppress(Exception):
        return kind()
    return kind.__new__(kind)


def kind_of(owner: Owner) -> str:
    """What something with an `apply` is called."""
    return "edit" if isinstance(owner, Edit) else "signal" if isinstance(owner, Signal) else "phase"


class _WatchedMachine(Machine[Context]):
    def program(self, interpreter: Interpreter = "compiled") -> Program[Context]:
        watch: Watch[Context] = self.__dict__["watch"]
        known: dict[str, Program[Context]] = self.__dict__.setdefault("watched", {})
        if interpreter not in known:
            other: Interpreter = "transitions" if interpreter == "compiled" else "compiled"
            known[interpreter] = watch.program(super().program(interpreter), super().program(other))
        return known[interpreter]
