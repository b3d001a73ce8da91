"""The commands for runs of any machine: moves, breakpoints, several runs side by side, and the files they go to."""

from typing import Any

from phases.debugger.command import Lines, number, path
from phases.debugger.compare import compared
from phases.debugger.errors import DebuggerError
from phases.debugger.session import Session
from phases.debugger.timeline import moment_line


def step(session: Session[Any], rest: str) -> Lines:
    before = session.run.step_count
    reason = session.step(number(rest, "step [N]", 1))
    return [*(moment_line(m) for m in session.moments(before, session.run.step_count)), *why(reason)]


def run(session: Session[Any], rest: str) -> Lines:
    alone("run", rest)
    reason = session.run_on()
    return [*why(reason), session.where()]


def alone(name: str, rest: str) -> None:
    """Refuse what stands behind a command that takes nothing."""
    if rest:
        raise DebuggerError(f"expected {name} alone, not {rest!r} after it")


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


def load(session: Session[Any], rest: str) -> Lines:
    session.load(path(rest, "load FILE"))
    return [session.where()]


def compare(session: Session[Any], rest: str) -> Lines:
    return compared(session, number(rest, "compare [N]") if rest else None)
