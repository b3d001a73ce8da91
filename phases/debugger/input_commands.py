"""The commands for what comes from outside: signals, edits, and the answers that a run waits for."""

from typing import Any

from phases.debugger.command import Lines, name_and_rest, value, written
from phases.debugger.errors import DebuggerError
from phases.debugger.inputs import inputs_of
from phases.debugger.session import Session
from phases.debugger.timeline import moment_line
from phases.debugger.values import short


def signals(session: Session[Any], rest: str) -> Lines:
    found = inputs_of(session.run)
    names = [written(one.name) for one in found]
    width = max(map(len, names), default=0)
    return [
        f"{'*' if one.possible else ' '} {one.kind:<6}  {name:<{width}}  {one.words}".rstrip()
        for one, name in zip(found, names, strict=True)
    ] or ["nothing comes from outside: the machine has no signals and no edits, and the run does not wait"]


def events(session: Session[Any], rest: str) -> Lines:
    found = [f"{number:>5} {words}" for number, words in session.happenings()]
    return found or ["nothing has come from outside"]


def signal(session: Session[Any], rest: str) -> Lines:
    name, carried = name_and_rest(rest, "signal NAME, or signal NAME JSON if it carries something")
    session.signal(name, value(carried, "signal NAME JSON") if carried else None)
    return [f"sent {name}", session.where()]


def answer(session: Session[Any], rest: str) -> Lines:
    outcome = value(rest, 'answer JSON, as in answer true or answer {"by": "me"}')
    before = session.run.step_count
    session.answer(outcome)
    return _taken(session, before)


def late(session: Session[Any], rest: str) -> Lines:
    before = session.run.step_count
    session.time_out()
    return _taken(session, before)


def _taken(session: Session[Any], before: int) -> Lines:
    return [*(moment_line(moment) for moment in session.moments(before, session.run.step_count)), session.where()]


def edit(session: Session[Any], rest: str) -> Lines:
    usage = 'edit NAME {"argument": value, ...}'
    name, given = name_and_rest(rest, usage)
    arguments = value(given or "{}", usage)
    if not isinstance(arguments, dict):
        raise DebuggerError(f"expected {usage}: the arguments by name, not {short(arguments)}")
    return [f"edited {name}: {short(session.edit(name, arguments))}", session.where()]
