"""The commands that show where a run of any machine rests: its machine, guards, context, steps, and why it failed."""

from typing import Any

from phases.debugger.command import Lines, number
from phases.debugger.drawing import draw
from phases.debugger.errors import DebuggerError
from phases.debugger.fields import context_of
from phases.debugger.guards import guard_truths
from phases.debugger.session import Session
from phases.debugger.timeline import moment_line, travelled
from phases.debugger.values import HIDDEN, hidden, short

RECENT = 20  # steps that `timeline` lists
MOST_NAMES = 30  # of fields, in an error
WHOLE = 20_000  # characters of a field that is asked for by name


def where(session: Session[Any], rest: str) -> Lines:
    return [session.where(), *([session.notice] if session.notice else [])]


def machine(session: Session[Any], rest: str) -> Lines:
    run = session.run
    counts, _, last = travelled(run)
    drawing = draw(run.machine, run.phase.name, counts, (last.phase, last.target) if last else None)
    return [*("".join(text for text, _ in spans).rstrip() for spans in drawing), f"at {run.phase.name}"]


def context(session: Session[Any], rest: str) -> Lines:
    if rest:
        return [_field(session, rest)]
    fields = session.fields()
    width = max((len(field.name) for field in fields), default=0)
    return [
        f"{'*' if field.before is not None else ' '} {field.name:<{width}}  "
        + (f"{field.before} -> {field.value}" if field.before is not None else field.value)
        for field in fields
    ] or ["the context has no fields"]


def _field(session: Session[Any], name: str) -> str:
    held = context_of(session.run)
    if name not in held:
        named = ", ".join(list(held)[:MOST_NAMES])
        raise DebuggerError(f"expected a field of the context, not {name!r}; fields: {named}")
    return f"{name}: {HIDDEN if name in hidden(session.run.context) else short(held[name], WHOLE)}"


def guards(session: Session[Any], rest: str) -> Lines:
    lines = [
        f"{guard.name}: {'not defined here' if guard.truth is None else guard.truth}"
        for guard in guard_truths(session.run)
    ]
    here = session.run.step_count
    decided = [
        f"last step: {last.phase} -> {last.target}  {last.guards}"
        for last in session.moments(here - 1, here)
        if last.guards
    ]
    return [*(lines or [f"{session.run.phase.name} has no guards"]), *decided]


def timeline(session: Session[Any], rest: str) -> Lines:
    count, here = number(rest, "timeline [N]", RECENT), session.run.step_count
    first = max(0, here - count)
    lines: Lines = []
    events: dict[int, list[str]] = {}
    for place, words in session.happenings():
        events.setdefault(place, []).append(f"      {words}")
    for moment in session.moments(first, here + count):
        lines += events.get(moment.number, [])
        lines.append(f"{'>' if moment.number == here else ' '}{moment_line(moment, time=True)}")
    if here == session.run.recorded_steps:
        lines += events.get(here, [])
        lines.append(f">{here:>5} {session.run.phase.name}")
    return lines


def error(session: Session[Any], rest: str) -> Lines:
    if session.branch.failure is None:
        raise DebuggerError("nothing has failed in this run")
    return list(session.branch.failure.lines)
