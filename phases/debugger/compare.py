"""Two runs side by side, up to a few steps behind the first place where they went different ways."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from phases.debugger.branches import Branch
from phases.debugger.cells import fitted
from phases.debugger.errors import DebuggerError
from phases.debugger.session import Session
from phases.debugger.timeline import Moment
from phases.debugger.values import same
from statemachine import Run, Step

BEFORE, BEHIND = 3, 8  # steps that are shown before the first difference, and behind it
MOST_WIDTH = 48  # of a column


def compared(session: Session[Any], number: int | None = None) -> list[str]:
    """The run that is shown beside another: the one of this number, or the next one."""
    one, other = session.branch, _other(session, number)
    difference = first_difference(one.run, other.run)
    first = max(one.run.timeline.first, other.run.timeline.first)
    if difference is None:
        title = f"run {one.number} and run {other.number} are the same for all {one.run.step_count - first} steps"
        return [title]
    rows = []
    for place in range(max(first, difference - BEFORE), difference + BEHIND):
        mark = "*" if place == difference else " "
        for left, right in zip_longest(_told(session, one, place), _told(session, other, place), fillvalue=""):
            rows.append((mark, left, right))
            mark = " "
    rows = rows[: next((n for n, row in enumerate(rows) if row == (" ", "", "")), len(rows))]
    heads = [f"run {branch.number}{f', {branch.origin}' if branch.origin else ''}" for branch in (one, other)]
    width = min(MOST_WIDTH, max(len(left) for left in (heads[0], *(left for _, left, _ in rows))))
    return [
        f"run {one.number} and run {other.number} differ first at step {difference}",
        f"  {fitted(heads[0], width)}  {heads[1]}",
        *(f"{mark} {fitted(left, width)}  {right}".rstrip() for mark, left, right in rows),
    ]


def first_difference(one: Run[Any], other: Run[Any]) -> int | None:
    """The number of the first step that one of them took otherwise, or did not take; None if there is none.

    What came from outside before a step counts as part of it; how long a step took does not.
    """
    events = [_events(run) for run in (one, other)]
    first, last = max(one.timeline.first, other.timeline.first), max(one.step_count, other.step_count)
    for number in range(first, last + 1):
        if not same(*(found.get(number) for found in events)):
            return number
        if number < last and not _alike(_step(one, number), _step(other, number)):
            return number
    return None


def _alike(one: Step | None, other: Step | None) -> bool:
    if one is None or other is None:
        return False
    ways = [(step.phase, step.target, dict(step.guards)) for step in (one, other)]
    return ways[0] == ways[1] and same(one.outcome, other.outcome) and one.raised == other.raised


def _step(run: Run[Any], number: int) -> Step | None:
    return next(run.steps(number), None) if number < run.step_count else None


def _events(run: Run[Any]) -> dict[int, list[tuple[str, str, Any]]]:
    """What came from outside, by the number of the step before which it did."""
    found: dict[int, list[tuple[str, str, Any]]] = {}
    for event in run.events:
        found.setdefault(event.number, []).append((event.kind, event.name, event.outcome))
    return found


def _other(session: Session[Any], number: int | None) -> Branch[Any]:
    others = [branch for branch in session.branches if branch is not session.branch]
    for branch in others:
        if number is None or branch.number == number:
            return branch
    listed = ", ".join(str(branch.number) for branch in others) or "none: fork makes one"
    raise DebuggerError(f"expected the number of another run, compare N; others: {listed}")


def _told(session: Session[Any], branch: Branch[Any], place: int) -> Iterator[str]:
    """What came from outside before a step, and the step, as lines."""
    for number, words in session.happenings_of(branch):
        if number == place:
            yield f"      {words}"
    if step := _step(branch.run, place):
        found = Moment.of(step, session.words).found
        yield f"{place:>5} {step.phase} -> {step.target}{f'  {found}' if found else ''}"
    elif place == branch.run.step_count:
        yield f"{place:>5} {branch.run.phase.name}  {branch.run.status}"
