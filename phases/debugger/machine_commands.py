"""The commands for runs of any machine: moves, breakpoints, several runs side by side, and what is seen of them."""

from typing import Any

from phases.debugger.command import Lines, number, path
from phases.debugger.drawing import draw
from phases.debugger.errors import DebuggerError
from phases.debugger.guards import guard_truths
from phases.debugger.session import Session
from phases.debugger.timeline import Moment, travelled

RECENT = 20  # steps that `timeline` lists


def step(session: Session[Any], rest: str) -> Lines:
    before = session.run.step_count
    reason = session.step(number(rest, "step [N]", 1))
    return [*(_moment_line(m) for m in session.moments(before, session.run.step_count)), *why(reason)]


def why(reason: str) -> Lines:
    """Why a move stopped, if there is anything to say."""
    return [f"stopped: {reason}"] if reason else []


def back(session: Session[Any], rest: str) -> Lines:
    session.back(number(rest, "back [N]", 1))
    return [session.where()]


def goto(session: Session[Any], rest: str) -> Lines:
    session.goto(number(rest, "goto STEP"))
    return [session.where()]


def break_(session: Session[Any], rest: str) -> Lines:
    kind, _, target = rest.partition(" ")
    if not target.strip():
        raise DebuggerError("expected break phase NAME, break guard NAME or break if CONDITION")
    made = session.break_at(kind, target.strip())
    return [f"breakpoint {made.number}: {made}"]


def breaks(session: Session[Any], rest: str) -> Lines:
    return [f"breakpoint {found.number}: {found}" for found in session.breakpoints] or ["no breakpoints"]


def delete(session: Session[Any], rest: str) -> Lines:
    gone = session.breakpoints.delete(number(rest, "delete N"))
    return [f"deleted breakpoint {gone.number}: {gone}"]


def fork(session: Session[Any], rest: str) -> Lines:
    session.fork(number(rest, "fork [STEP]") if rest else None)
    return [session.where()]


def switch(session: Session[Any], rest: str) -> Lines:
    session.branches.switch(number(rest, "switch [N]") if rest else None)
    return [session.where()]


def close(session: Session[Any], rest: str) -> Lines:
    closed = session.branches.close_shown()
    return [f"closed run {closed.number}", session.where()]


def runs(session: Session[Any], rest: str) -> Lines:
    return [
        f"{'*' if branch is session.branch else ' '} run {branch.number}  {branch.run.status}  "
        f"step {branch.run.step_count} of {branch.run.recorded_steps}{f'  {branch.origin}' if branch.origin else ''}"
        for branch in session.branches
    ]


def save(session: Session[Any], rest: str) -> Lines:
    target = path(rest, "save FILE")
    session.save(target)
    return [f"saved to {target}"]


def where(session: Session[Any], rest: str) -> Lines:
    return [session.where(), *([session.notice] if session.notice else [])]


def machine(session: Session[Any], rest: str) -> Lines:
    run = session.run
    counts, _, last = travelled(run)
    drawing = draw(run.machine, run.phase.name, counts, (last.phase, last.target) if last else None)
    return [*("".join(text for text, _ in spans).rstrip() for spans in drawing), f"at {run.phase.name}"]


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


def _moment_line(moment: Moment, *, time: bool = False) -> str:
    """A step in one line."""
    words = [f"{moment.number:>5} {moment.phase} -> {moment.target}", moment.guards, moment.found]
    if time:
        words.append(f"{moment.elapsed_ns / 1e6:.3f} ms")
    return "  ".join(word for word in words if word)


def timeline(session: Session[Any], rest: str) -> Lines:
    count, here = number(rest, "timeline [N]", RECENT), session.run.step_count
    first = max(0, here - count)
    lines = []
    events = dict(session.happenings())
    for moment in session.moments(first, here + count):
        if moment.number in events:
            lines.append(f"      {events[moment.number]}")
        lines.append(f"{'>' if moment.number == here else ' '}{_moment_line(moment, time=True)}")
    if here == session.run.recorded_steps:
        lines += [f"      {events[here]}"] if here in events else []
        lines.append(f">{here:>5} {session.run.phase.name}")
    return lines
