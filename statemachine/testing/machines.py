"""Hypothesis strategies for random machines over a counting context: sound ones, and tables with planted faults."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import and_, or_
from typing import Any
from zlib import crc32

from hypothesis import strategies as st

from statemachine.definition.choice import Choice
from statemachine.definition.guard import Guard
from statemachine.definition.machine import Machine
from statemachine.definition.phase import End, Phase, Status
from statemachine.definition.raised import Raised
from statemachine.definition.table import Signal, Transition
from statemachine.definition.variable import row_count, values_at


class Overheated(Exception):
    """What phases of random machines raise."""


class Jammed(Exception):
    """What else they raise."""


FAILURES = (Overheated, Jammed)
FIRST_CHOICE = 6  # the variables before it are guards
VALUES = ("low", "middle", "high")  # of the choices


@dataclass(slots=True)
class Counter:
    """A context whose guards change with every step, in no simple way but reproducibly."""

    salt: int
    steps: int = 0
    visits: list[str] = field(default_factory=list)


class Work(Phase[Counter, int]):
    """Counts a step and notes the visit; raises now and then, as many kinds of failures as it has ways for."""

    failures = 0

    def run(self, context: Counter) -> int:
        if (which := _hashed(context, 99) % 4) < self.failures:
            raise FAILURES[which](f"after {context.steps} steps")
        return context.steps + 1

    def apply(self, context: Counter, outcome: int) -> None:
        context.steps = outcome
        context.visits.append(self.name)

    def apply_error(self, context: Counter, raised: Raised) -> None:
        context.steps += 1
        context.visits.append(self.name)


class Idle(Phase[Counter, None]):
    """A phase without an outcome: its guards must still be evaluated afresh."""


class Count(Signal[Counter, int]):
    """Counts on."""

    def apply(self, context: Counter, payload: int) -> None:
        context.steps += payload % 100


@cache
def variable(number: int) -> Guard[Counter] | Choice[Counter]:
    """A guard that is true for about half of all contexts, or a choice with each of its values as often."""
    if number < FIRST_CHOICE:
        return hashed(number)
    return Choice(f"c{number}", VALUES, lambda context: VALUES[_hashed(context, number) % len(VALUES)])


def hashed(number: int) -> Guard[Counter]:
    """A guard that is true for about half of all contexts."""
    return Guard(f"g{number}", lambda context: _hashed(context, number) % 2 == 1)


def _hashed(context: Counter, number: int) -> int:
    return crc32(b"%d %d %d" % (context.salt, context.steps, number))


@dataclass(frozen=True)
class Plan:
    """A table before it is checked: what each phase's truth table says."""

    kinds: list[type[Phase[Counter, Any]]]
    guards: list[list[int]]  # per phase, numbers of its guards and choices
    targets: list[list[int]]  # per phase, the target of each row of its truth table; len(kinds) is the end
    dropped: set[int] = field(default_factory=set)  # phases whose last row goes nowhere
    doubled: set[int] = field(default_factory=set)  # phases whose last row goes two ways
    failures: list[list[list[int]]] = field(default_factory=list)  # per phase and failure, the target of each row

    def build(self) -> Machine[Counter]:
        """The machine; raises InvalidMachine when something was dropped or doubled."""
        phases: list[Phase[Counter, Any]] = [kind(f"p{number}") for number, kind in enumerate(self.kinds)]
        phases.append(End("end"))
        table = []
        for number, failures in enumerate(self.failures):
            phases[number].failures = len(failures)  # type: ignore[attr-defined]  # only phases that work have any
        for source, numbers, targets, kind in self._columns():
            rows: dict[int, list[int]] = {}
            for row, target in enumerate(targets):
                if kind or not (source in self.dropped and row == len(targets) - 1):
                    rows.setdefault(target, []).append(row)
            if source in self.doubled and not kind:
                rows.setdefault((targets[-1] + 1) % len(phases), []).append(len(targets) - 1)
            for target, which in rows.items():
                when = None
                if numbers:
                    when = reduce(or_, (_minterm([*map(variable, numbers)], row) for row in which))
                table.append(Transition(phases[source], phases[target], when, raises=kind))
        cancelled: End[Counter] = End("cancelled", status=Status.CANCELLED)
        working, often = phases[:-1], hashed(6)
        signals: list[Signal[Counter, Any]] = [
            Signal("cancel", to=cancelled),
            Signal("jump", to=working[-1], sources=(working[0],), when=often),
            *(Signal("jump", to=working[0], sources=(phase,), when=~often) for phase in working[1:]),
            Count("count", to=working[0]),
        ]
        return Machine("random", start=phases[0], transitions=table, signals=signals)

    def _columns(self) -> Iterator[tuple[int, list[int], list[int], tuple[type[Exception], ...]]]:
        """Each phase, its guards and choices, and the targets of its rows: after an outcome, and after each failure."""
        for source, (numbers, targets) in enumerate(zip(self.guards, self.targets, strict=True)):
            yield source, numbers, targets, ()
            for kind, targets_then in zip(FAILURES, self.failures[source] if self.failures else (), strict=False):
                yield source, numbers, targets_then, (kind,)


def _minterm(atoms: list[Guard[Counter] | Choice[Counter]], row: int) -> Guard[Counter]:
    values = values_at(row, ((atom.name, atom.values) for atom in atoms))
    return reduce(and_, (_is(atom, values[atom.name]) for atom in atoms))


def _is(atom: Guard[Counter] | Choice[Counter], value: object) -> Guard[Counter]:
    if isinstance(atom, Choice):
        return atom.is_(value)
    return atom if value else ~atom


@st.composite
def plans(draw: st.DrawFn, *, sabotage: bool = False) -> Plan:
    """Plans of sound machines (each phase's first row leads on to the next); sabotaged, at least one row is wrong."""
    count = draw(st.integers(1, 6))
    kinds: list[type[Phase[Counter, Any]]] = draw(
        st.lists(st.sampled_from([Work, Work, Idle]), min_size=count, max_size=count)
    )
    least = 1 if sabotage else 0
    guards = [draw(st.lists(st.integers(0, 7), min_size=least, max_size=3, unique=True)) for _ in range(count)]
    rows = [row_count(variable(n).values for n in own) for own in guards]
    some = [st.lists(st.integers(0, count), min_size=number, max_size=number) for number in rows]
    targets = [[number + 1, *draw(each)[1:]] for number, each in enumerate(some)]
    if not sabotage:
        most = [len(FAILURES) if kind is Work else 0 for kind in kinds]
        return Plan(kinds, guards, targets, failures=[
            draw(st.lists(each, max_size=number)) for each, number in zip(some, most, strict=True)
        ])  # fmt: skip
    wrong = draw(st.sets(st.integers(0, count - 1), min_size=1))
    dropped = draw(st.booleans())
    return Plan(kinds, guards, targets, dropped=wrong if dropped else set(), doubled=set() if dropped else wrong)


def machines() -> st.SearchStrategy[Machine[Counter]]:
    """Sound machines of up to six phases over a `Counter`, with guards, choices and error ways.

    Their signals are "cancel", "jump", which a guard keeps back and which leads elsewhere from each phase, and "count",
    which carries a number.
    """
    return plans().map(Plan.build)
