"""The loop: phase after phase, until something asks for attention, a step is to be looked at or the run ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, TypeVar

from statemachine.definition.program import Arc, Row
from statemachine.definition.raised import Raised
from statemachine.execution.timeline import Timeline

Context = TypeVar("Context")


@dataclass(slots=True)
class Cursor:
    """Where the loop is, and when it looks up from its work."""

    index: int  # of the phase that runs next; while it runs, of the one at work
    attention: bool = False  # something is pending or requested
    due: int = 0  # ns of the clock: when `tend` is to be called next


def drive(
    cursor: Cursor,
    rows: Sequence[Row[Context]],
    context: Context,
    timeline: Timeline[Context],
    *,
    heed: Callable[[], bool],
    tend: Callable[[int], None],
    catch: Callable[[Exception], tuple[Arc, Raised] | None],
    accept: Callable[[Any], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Take step after step and record each, until the run is to rest, waits for an answer or stands at its end.

    Parameters
    ----------
    heed
        Called between two steps when the cursor asks for attention; may move the cursor. True: rest here.
    tend
        Called after a step when it is due, with the clock's time; sets when it is due again.
    catch
        Called with what a phase raised, to enter it in the context where the table has a way for it. None: it has none.
    accept
        Called with each outcome before it is entered in the context; raises if it cannot be recorded.
    stop
        Called after each step. True: rest here.
    """
    clock = perf_counter_ns
    arcs, outcomes, elapsed = timeline.arcs, timeline.outcomes, timeline.elapsed
    index, then = cursor.index, clock()
    while True:
        if cursor.attention:
            if heed():
                return
            index, then = cursor.index, clock()
        row = rows[index]
        if row.rests:
            return
        try:
            run = row.run
            outcome = run(context)
        except Exception as error:
            caught = catch(error)
            if caught is None:
                raise
            arc, outcome = caught
        else:
            if outcome is not None or row.enters_none:
                if accept is not None:
                    accept(outcome)
                apply = row.apply
                apply(context, outcome)
            select = row.select
            arc = row.arcs[0] if select is None else row.arcs[select(context)]
        arcs.append(arc)
        outcomes.append(outcome)
        cursor.index = index = arc.target
        now = clock()
        elapsed.append(now - then)
        then = now
        if stop is not None:
            if stop():
                return
            then = clock()
        if now >= cursor.due:
            tend(now)
            then = clock()
