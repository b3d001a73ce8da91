"""Everything there is to see where a run of any machine rests, put together for a screen."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from phases.debugger.breakpoints import Breakpoint
from phases.debugger.drawing import Spans, draw
from phases.debugger.fields import Field
from phases.debugger.guards import GuardTruth, guard_truths
from phases.debugger.inputs import Input, inputs_of, until
from phases.debugger.session import Session
from phases.debugger.timeline import Moment, moments, travelled

NEARBY = 200  # steps to either side that a timeline shows
HAPPENED = 20  # signals and edits that are listed, the last ones


@dataclass(frozen=True, slots=True)
class View:
    """Everything there is to see where a run rests."""

    branches: tuple[str, ...]
    current: int  # index of the branch
    status: str
    until: str  # by when a run that waits wants its answer
    phase: str
    phases: tuple[str, ...]  # of the machine
    step: int
    first: int  # the number of the first recorded step
    steps: int  # recorded, those ahead included
    drawing: list[Spans]
    guards: tuple[GuardTruth, ...]
    last: Moment | None
    moments: tuple[Moment, ...]  # near the place where it rests
    elapsed_ns: int
    breakpoints: tuple[Breakpoint, ...]
    notice: str
    failed: bool
    fields: tuple[Field, ...]  # of the context
    compared: bool  # whether those that changed are known
    inputs: tuple[Input, ...]
    happened: tuple[tuple[int, str], ...]


Seen = TypeVar("Seen", bound=View)


def view_of(session: Session[Any]) -> View:
    """What is to be seen of the run that is shown, whatever its machine."""
    return View(**seen(session))


def seen(session: Session[Any]) -> dict[str, Any]:
    """The fields of a view that there are for any machine."""
    run = session.run
    counts, elapsed, last = travelled(run)
    stops = frozenset(found.target for found in session.breakpoints if found.kind == "phase")
    return {
        "branches": tuple(map(str, session.branches)), "current": session.branches.current, "status": session.status,
        "until": until(run), "phase": run.phase.name, "phases": tuple(run.machine.phases), "step": run.step_count,
        "first": run.timeline.first, "steps": run.recorded_steps,
        "drawing": draw(run.machine, run.phase.name, counts, (last.phase, last.target) if last else None, stops),
        "guards": guard_truths(run), "last": Moment.of(last, session.words) if last else None,
        "moments": tuple(moments(run, run.step_count - NEARBY, run.step_count + NEARBY, lambda step: "")),
        "elapsed_ns": elapsed, "breakpoints": tuple(session.breakpoints), "notice": session.notice,
        "failed": session.branch.failure is not None and run.status == "failed",
        "compared": session.compares, "fields": session.fields(always=False), "inputs": inputs_of(run),
        "happened": tuple(session.happenings()[-HAPPENED:]),
    }  # fmt: skip


def glance(session: Session[Any], view: Seen) -> Seen:
    """A view with what can be seen of a run while it is being moved: phase and steps."""
    phase, step = session.progress()
    drawing = draw(session.run.machine, phase, {}, None)
    return replace(view, status="running", phase=phase, step=step, steps=step, drawing=drawing, notice="", failed=False)
