"""The fields of a run's context as text, and what the last step changed of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from phases.debugger.values import HIDDEN, hidden, parts, same, short
from statemachine import Run
from statemachine.execution.travel import state_at

MOST = 200  # fields that are shown
ABSENT = object()


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a context."""

    name: str
    value: str
    before: str | None = None  # what it was, if the last step, or what came from outside after it, changed it


def fields_of(run: Run[Any], *, room: int = 200, compare: bool = True) -> tuple[Field, ...]:
    """The fields of a resting run's context, those that the last step changed with what they were.

    Parameters
    ----------
    room
        Characters of a value.
    compare
        Look for changes, which takes a copy of the context.
    """
    now, secret = context_of(run), hidden(run.context)
    then = _before(run) if compare else None
    found = []
    for name, value in islice(now.items(), MOST):
        if name in secret:
            found.append(Field(name, HIDDEN))
            continue
        old = value if then is None else then.get(name, ABSENT)
        before = None if same(old, value) else "absent" if old is ABSENT else short(old, room)
        found.append(Field(name, short(value, room), before))
    gone = [name for name in then or () if name not in now and name not in secret]
    return (*found, *(Field(name, "absent", short((then or {})[name], room)) for name in gone[:MOST]))


def context_of(run: Run[Any]) -> dict[str, Any]:
    """The fields of a run's context by name; none where it has none that can be read."""
    try:
        return parts(run.context)
    except Exception:
        return {}


def _before(run: Run[Any]) -> Mapping[str, Any] | None:
    """The fields as they were before the last step, or before the last thing that came from outside after it.

    They are worked out on a copy, as time travel does; None where there is nothing to go back to, or no way.
    """
    timeline, here = run.timeline, run.step_count
    events = [event for event in timeline.events_here if event.kind != "refused"]  # which changed nothing
    if timeline.origin is None:
        return None
    if events and events[-1].number == here:
        place, events = here, events[:-1]
    else:
        place, events = here - 1, [event for event in events if event.number < here]
    if place < timeline.first:
        return None
    try:
        return parts(state_at(timeline, run.context, place, events)[0])
    except Exception:  # a context that cannot be copied
        return None
