"""Time travel: what a run's context was at any place of its past, worked out aside, on a scratch context."""

from collections.abc import Sequence
from time import perf_counter_ns, thread_time_ns
from typing import Any, TypeVar

from statemachine.definition.program import Arc, Program
from statemachine.execution import host_state
from statemachine.execution.timeline import Event, Timeline

Context = TypeVar("Context")

FRAMES_PART = 25  # a copy of the host fields is made when this many times its cost has passed since the last one


def state_at(
    timeline: Timeline[Context], context: Context, number: int, events: Sequence[Event]
) -> tuple[Context, int]:
    """A scratch context as it was after the steps before `number` and these events, and the index of the phase there.

    It is a fold: the nearest frame's host fields, then `apply` of every outcome, edit and payload since. `context`
    lends its pinned fields and is not touched, nor is any device. The events are the first of those remembered.
    """
    forgotten = timeline.forgotten.events
    frame = timeline.frame_before(number, forgotten + len(events))
    scratch, index = host_state.scratch(context, frame.fields), frame.at
    program = timeline.program
    arcs, outcomes, _ = timeline.columns(frame.number, number)
    step = frame.number
    for event in events[frame.events - forgotten :]:
        index = _steps(program, scratch, arcs, outcomes, step - frame.number, event.number - frame.number, index)
        step = event.number
        if event.kind == "signal":
            door = timeline.program.doors[index][event.name]
            if door.apply is not None:
                door.apply(scratch, event.outcome)
            index = door.target
        elif event.kind == "edit":
            timeline.machine.edit(event.name).apply(scratch, event.outcome)
    return scratch, _steps(program, scratch, arcs, outcomes, step - frame.number, number - frame.number, index)


def _steps(
    program: Program[Any], scratch: Any, arcs: Sequence[Arc], outcomes: Sequence[Any], first: int, last: int, index: int
) -> int:
    """Apply the outcomes of a stretch of steps; the index of the phase that the run then rests at."""
    for place in range(first, last):
        arc = arcs[place]
        program.enter(arc.source, scratch, outcomes[place], arc.raised)
    return arcs[last - 1].target if last > first else index


class FrameKeeper:
    """Keeps a frame of a run now and then, so that no way back is long; takes a few percent of its time at most."""

    __slots__ = ("_cost", "_next_at")

    def __init__(self) -> None:
        self._next_at = 0  # ns of the clock
        self._cost = 2**40  # ns of the last one

    def keep(self, timeline: Timeline[Context], context: Context, index: int, now: int, *, among: int = 1) -> None:
        """Keep a frame, if it is time for one; called between two moves, before phase `index`.

        `among` so many runs the time is shared that has passed since the last one.
        """
        if now < self._next_at or not timeline.wants_frame:
            return
        began = thread_time_ns()
        try:
            fields = host_state.save(context)
        except TypeError:  # a field that cannot be copied any more; then all folds begin at an earlier frame
            self._next_at = 2**63
            return
        self._cost = min(thread_time_ns() - began, 2 * self._cost)  # a garbage collection is none of its cost
        timeline.keep(timeline.frame(index, fields, self._cost))
        self._next_at = perf_counter_ns() + FRAMES_PART * self._cost * among
