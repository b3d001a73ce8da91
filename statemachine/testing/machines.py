"""Hypothesis strategies for random machines over a counting context: sound ones, and tables with planted faults."""

from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_
from typing import Any
from zlib import crc32

from hypothesis import strategies as st

from statemachine.definition.guard import Guard
from statemachine.definition.machine import Machine
from statemachine.definition.phase import End, Phase, Status
from statemachine.definition.table import Signal, Transition


@dataclass(slots=True)
class Counter:
    """A context whose guards change with every step, in no simple way but reproducibly."""

    salt: int
    steps: int = 0
    visits: list[str] = field(default_factory=list)


class Work(Phase[Counter, int]):
    """Counts a step and notes the visit."""

    def run(self, context: Counter) -> int:
        return context.steps + 1

    def apply(self, context: Counter, outcome: int) -> None:
        context.steps = outcome
        context.visits.append(self.name)


class Idle(Phase[Counter, None]):
    """A phase without an outcome: its guards must still be evaluated afresh."""


class Count(Signal[Counter, int]):
    """Counts on."""

    def apply(self, context: Counter, payload: int) -> None:
        context.steps += payload % 100


def hashed(number: int) -> Guard[Counter]:
    """A guard that is true for about half of all contexts."""
    return Guard(f"g{number}", lambda context: crc32(b"%d %d %d" % (context.salt, context.steps, number)) % 2 == 1)


@dataclass(frozen=True)
class Plan:
    """A table before it is checked: what each phase's truth table says."""

    kinds: list[type[Phase[Counter, Any]]]
    guards: list[list[int]]  # per phase, numbers of its guards
    targets: list[list[int]]  # per phase, the target of each row of its truth table; len(kinds) is the end
    dropped: set[int] = field(default_factory=set)  # phases whose last row goes nowhere
    doubled: set[int] = field(default_factory=set)  # phases whose last row goes two ways

    def build(self) -> Machine[Counter]:
        """The machine; raises InvalidMachine when something was dropped or doubled."""
        phases: list[Phase[Counter, Any]] = [kind(f"p{number}") for number, kind in enumerate(self.kinds)]
        phases.append(End("end"))
        atoms = {number: hashed(number) for numbers in self.guards for number in numbers}
        table = []
        for source, (numbers, targets) in enumerate(zip(self.guards, self.targets, strict=True)):
            rows: dict[int, list[int]] = {}
            for row, target in enumerate(targets):
                if not (source in self.dropped and row == len(targets) - 1):
                    rows.setdefault(target, []).append(row)
            if source in self.doubled:
                rows.setdefault((targets[-1] + 1) % len(phases), []).append(len(targets) - 1)
            for target, which in rows.items():
                when = None
                if numbers:
                    when = reduce(or_, (_minterm([atoms[n] for n in numbers], row) for row in which))
                table.append(Transition(phases[source], phases[target], when))
        cancelled: End[Counter] = End("cancelled", status=Status.CANCELLED)
        working, often = phases[:-1], hashed(6)
        signals: list[Signal[Counter, Any]] = [
            Signal("cancel", to=cancelled),
            Signal("jump", to=working[-1], sources=(working[0],), when=often),
            *(Signal("jump", to=working[0], sources=(phase,), when=~often) for phase in working[1:]),
            Count("count", to=working[0]),
        ]
        return Machine("random", start=phases[0], transitions=table, signals=signals)


def _minterm(atoms: list[Guard[Counter]], row: int) -> Guard[Counter]:
    return reduce(and_, (atom if row >> bit & 1 else ~atom for bit, atom in enumerate(atoms)))


@st.composite
def plans(draw: st.DrawFn, *, sabotage: bool = False) -> Plan:
    """Plans of sound machines (each phase's first row leads on to the next); sabotaged, at least one row is wrong."""
    count = draw(st.integers(1, 6))
    kinds: list[type[Phase[Counter, Any]]] = draw(
        st.lists(st.sampled_from([Work, Work, Idle]), min_size=count, max_size=count)
    )
    least = 1 if sabotage else 0
    guards = [draw(st.lists(st.integers(0, 5), min_size=least, max_size=3, unique=True)) for _ in range(count)]
    targets = [
        [number + 1, *draw(st.lists(st.integers(0, count), min_size=2 ** len(own) - 1, max_size=2 ** len(own) - 1))]
        for number, own in enumerate(guards)
    ]
    if not sabotage:
        return Plan(kinds, guards, targets)
    wrong = draw(st.sets(st.integers(0, count - 1), min_size=1))
    dropped = draw(st.booleans())
    return Plan(kinds, guards, targets, dropped=wrong if dropped else set(), doubled=set() if dropped else wrong)


def machines() -> st.SearchStrategy[Machine[Counter]]:
    """Sound machines of up to six phases over a `Counter`, with up to three guards a phase.

    Their signals are "cancel", "jump", which a guard keeps back and which leads elsewhere from each phase, and "count",
    which carries a number.
    """
    return plans().map(Plan.build)
