"""Everything there is to see where a run rests, put together for a screen."""

from contextlib import suppress
from dataclasses import dataclass, replace

from phases.debugger.breakpoints import Breakpoint
from phases.debugger.distribution import Distribution, NoDistribution
from phases.debugger.drawing import Spans, draw
from phases.debugger.generation import GenerationSession
from phases.debugger.guards import GuardTruth, guard_truths
from phases.debugger.memory import Buffer, CacheRow
from phases.debugger.text import Text
from phases.debugger.timeline import Moment, travelled

NEARBY = 200  # steps to either side that a timeline shows


@dataclass(frozen=True, slots=True)
class View:
    """Everything there is to see where a run rests."""

    branches: tuple[str, ...]
    current: int  # index of the branch
    status: str
    phase: str
    step: int
    steps: int  # recorded, those ahead included
    row: int
    rows: int
    drawing: list[Spans]
    text: Text
    tokens: int
    distribution: Distribution | str  # or why there is none
    names: dict[int, str]  # how each candidate is called
    sampling: tuple[str, ...]
    guards: tuple[GuardTruth, ...]
    last: Moment | None
    buffers: tuple[Buffer, ...]
    cache: tuple[CacheRow, ...]
    moments: tuple[Moment, ...]  # near the place where it rests
    elapsed_ns: int
    breakpoints: tuple[Breakpoint, ...]
    notice: str

    @classmethod
    def of(cls, session: GenerationSession) -> "View":
        """What is to be seen of the run that is shown."""
        run, branch = session.run, session.branch
        counts, elapsed, last = travelled(run)
        shown: Distribution | str
        try:
            shown = session.distribution()
        except NoDistribution as error:
            shown = str(error)
        names = {}
        if isinstance(shown, Distribution):
            names = {candidate.token_id: session.label(candidate.token_id) for candidate in shown.candidates}
        params = run.context.request.requests[branch.row].params
        return cls(
            branches=tuple(map(str, session.branches)), current=session.branches.current, status=session.status,
            phase=run.phase.name, step=run.step_count, steps=run.recorded_steps,
            row=branch.row, rows=len(run.context.slots),
            drawing=draw(run.machine, run.phase.name, counts, (last.phase, last.target) if last else None),
            text=session.text(), tokens=len(run.context.output_ids[branch.row]), distribution=shown, names=names,
            sampling=(f"temp {params.temperature:g}", f"top-k {params.top_k}", f"top-p {params.top_p:g}",
                      f"min-p {params.min_p:g}"),
            guards=guard_truths(run), last=Moment.of(last, session.words) if last else None,
            buffers=session.buffers(), cache=session.cache(),
            moments=tuple(session.moments(run.step_count - NEARBY, run.step_count + NEARBY)), elapsed_ns=elapsed,
            breakpoints=tuple(session.breakpoints), notice=session.notice,
        )  # fmt: skip


def glance(session: GenerationSession, view: View) -> View:
    """A view with what can be seen of a run while it is being moved: phase, steps, tokens and text."""
    phase, step, tokens = session.progress()
    with suppress(Exception):  # the text may be growing at this moment
        view = replace(view, text=session.text())
    drawing = draw(session.run.machine, phase, {}, None)
    return replace(
        view, status="running", phase=phase, step=step, steps=step, tokens=tokens, drawing=drawing, notice=""
    )
