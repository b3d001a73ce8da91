"""What stands in a table where something else belongs: told as findings, before the table is read at all."""

import inspect
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any

from statemachine.definition.choice import Choice
from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase, Wait, declared_outcome
from statemachine.definition.raised import Raised
from statemachine.definition.table import Edit, Signal, Transition, words_of
from statemachine.errors import Finding

_REMEDIES = {
    Transition: "write Transition(source, target, guard)",
    Signal: "write Signal(name, to=phase)",
    Edit: "make an object of a subclass of Edit",
    Phase: "make an object of a subclass of Phase",
    Guard: "make a guard of a function with @guard, or Guard(name, function), or of a choice with is_(value)",
}


def find(start: Any, transitions: Sequence[Any], signals: Sequence[Any], edits: Sequence[Any]) -> Iterator[Finding]:
    """Everything that is of the wrong type; while there is anything, the table cannot be read."""
    yield from _expected(start, Phase, "the start", named=False)
    phases = [start]
    for way in transitions:
        if isinstance(way, Transition):
            where = f"a transition from {_words(way.source)} to {_words(way.target)}"
            yield from _expected(way.source, Phase, f"the source of {where}")
            yield from _expected(way.target, Phase, f"the target of {where}")
            if way.when is not None:
                yield from _expected(way.when, Guard, f"the guard of {where}", named=False)
            for kind in way.raises if isinstance(way.raises, tuple) else (way.raises,):
                yield from _exception(kind, where)
            phases += [way.source, way.target]
        else:
            yield from _expected(way, Transition, "a row of the table", named=False)
    for signal in signals:
        if isinstance(signal, Signal):
            yield from _expected(signal.to, Phase, f"the target of signal {signal.name!r}")
            for source in signal.sources:
                yield from _expected(source, Phase, f"a source of signal {signal.name!r}")
            if signal.when is not None:
                yield from _expected(signal.when, Guard, f"the guard of signal {signal.name!r}", named=False)
            yield from _payload(signal)
            phases += [signal.to, *signal.sources]
        else:
            yield from _expected(signal, Signal, "one of the signals", named=False)
    for edit in edits:
        yield from _expected(edit, Edit, "one of the edits", named=False)
        for source in edit.sources if isinstance(edit, Edit) else ():
            yield from _expected(source, Phase, f"a source of edit {edit.name!r}")
    for phase in dict.fromkeys(phase for phase in phases if isinstance(phase, Phase)):
        yield from _halves(phase)


def _expected(found: Any, kind: type, where: str, *, named: bool = True) -> Iterator[Finding]:
    if isinstance(found, kind) or (named and isinstance(found, str)):
        return
    what = f"{where} is {_words(found)}, expected {_an(kind)}{', or the name of one' if named else ''}"
    yield Finding("mistake", _words(found), what, _REMEDIES[kind])


def _exception(found: Any, where: str) -> Iterator[Finding]:
    if not (isinstance(found, type) and issubclass(found, Exception)):
        yield Finding("mistake", _words(found), f"what {where} is for is {_words(found)}, expected a kind of exception",
                      "name a subclass of Exception in raises, or several in a tuple")  # fmt: skip


def _halves(phase: Phase[Any, Any]) -> Iterator[Finding]:
    """What the methods of a phase cannot be."""
    for half in (phase.run, phase.apply, phase.apply_error):
        yield from _plain(half, phase.name)
    if declared_outcome(type(phase), Phase) is Raised:
        yield Finding("mistake", phase.name, "declares Raised as its outcome, which is what an exception becomes",
                      "give the outcome a class of its own")  # fmt: skip
    if not isinstance(phase, Wait):
        return
    if type(phase).run is not Phase.run:
        yield Finding("mistake", phase.name, "is a Wait with a run() of its own, which nobody calls",
                      "make it a Phase, or let a phase before it do the work")  # fmt: skip
    if (type(phase).deadline is not Wait.deadline) != (type(phase).late is not Wait.late):
        yield Finding("mistake", phase.name, "has one of deadline() and late(), and not the other",
                      "say when it is over, and what the answer is then")  # fmt: skip


def _payload(signal: Signal[Any, Any]) -> Iterator[Finding]:
    """What a signal that carries something cannot be."""
    yield from _plain(signal.apply, signal.name)
    declared = declared_outcome(type(signal), Signal)
    if not signal.carries and declared not in (Any, None, NoneType):
        yield Finding("mistake", signal.name, f"carries {words_of(declared)}, but has no apply() to enter it",
                      "give its class an apply(context, payload)")  # fmt: skip


def _plain(half: Any, owner: str) -> Iterator[Finding]:
    if inspect.iscoroutinefunction(half) or inspect.isgeneratorfunction(half) or inspect.isasyncgenfunction(half):
        yield Finding("mistake", owner, f"{half.__name__}() is a coroutine or generator, which nobody awaits",
                      "make it a plain function; what it waits for can be a Wait")  # fmt: skip


def _words(found: Any) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}"
    if inspect.isroutine(found):
        return f"the function {found.__name__}"
    if isinstance(found, Choice):
        return f"the choice {found.name}"
    return repr(found.name if isinstance(found, Phase) else found)


def _an(kind: type) -> str:
    return f"{'an' if kind is Edit else 'a'} {kind.__name__}"
