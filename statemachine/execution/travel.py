"""Time travel: what a run's context was at any place of its past, worked out aside, on a scratch context."""

from collections.abc import Sequence
from typing import Any, TypeVar

from statemachine.execution import host_state
from statemachine.execution.timeline import Event, Timeline

Context = TypeVar("Context")


def state_at(
    timeline: Timeline[Context], context: Context, number: int, events: Sequence[Event]
) -> tuple[Context, int]:
    """A scratch context as it was after the steps before `number` and these events, and the index of the phase there.

    It is a fold: the nearest frame's host fields, then `apply` of every outcome and edit since. `context` lends its
    pinned fields and is not touched, nor is any device.
    """
    frame = timeline.frame_before(number)
    scratch, index = host_state.scratch(context, frame.fields), frame.at
    rows = timeline.program.rows
    arcs, outcomes, _ = timeline.columns(frame.number, number)
    step = frame.number
    for event in events:
        if event.number < frame.number:
            continue
        index = _steps(rows, scratch, arcs, outcomes, step - frame.number, event.number - frame.number, index)
        step = event.number
        if event.kind == "signal":
            index = timeline.program.index_of(timeline.machine.signal_target(event.name))
        else:
            timeline.machine.edit(event.name).apply(scratch, event.outcome)
    return scratch, _steps(rows, scratch, arcs, outcomes, step - frame.number, number - frame.number, index)


def _steps(
    rows: Sequence[Any], scratch: Any, arcs: Sequence[Any], outcomes: Sequence[Any], first: int, last: int, index: int
) -> int:
    """Apply the outcomes of a stretch of steps; the index of the phase that the run then rests at."""
    for place in range(first, last):
        outcome = outcomes[place]
        if outcome is not None:
            rows[arcs[place].source].apply(scratch, outcome)
    return arcs[last - 1].target if last > first else index
