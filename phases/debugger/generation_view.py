"""Everything there is to see where a generation rests: what any run has, and its text, candidates and buffers."""

from contextlib import suppress
from dataclasses import dataclass, replace

from phases.debugger import view
from phases.debugger.distribution import Distribution, NoDistribution
from phases.debugger.generation import GenerationSession
from phases.debugger.memory import Buffer, CacheRow
from phases.debugger.text import Text
from phases.debugger.view import View, seen


@dataclass(frozen=True, slots=True)
class GenerationView(View):
    """Everything there is to see where a generation rests."""

    row: int
    rows: int
    text: Text
    tokens: int
    distribution: Distribution | str  # or why there is none
    names: dict[int, str]  # how each candidate is called
    sampling: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    cache: tuple[CacheRow, ...]


def view_of(session: GenerationSession) -> GenerationView:
    """What is to be seen of the generation that is shown."""
    run, branch = session.run, session.branch
    shown: Distribution | str
    try:
        shown = session.distribution()
    except NoDistribution as error:
        shown = str(error)
    names = {}
    if isinstance(shown, Distribution):
        names = {candidate.token_id: session.label(candidate.token_id) for candidate in shown.candidates}
    params = run.context.request.requests[branch.row].params
    return GenerationView(
        **seen(session), row=branch.row, rows=len(run.context.slots), text=session.text(), tokens=session.tokens,
        distribution=shown, names=names,
        sampling=(f"temp {params.temperature:g}", f"top-k {params.top_k}", f"top-p {params.top_p:g}",
                  f"min-p {params.min_p:g}"),
        buffers=session.buffers(), cache=session.cache(),
    )  # fmt: skip


def glance(session: GenerationSession, shown: GenerationView) -> GenerationView:
    """What can be seen of a generation while it is being moved: phase, steps, tokens and text."""
    with suppress(Exception):  # the text may be growing at this moment
        shown = replace(shown, text=session.text())
    return replace(view.glance(session, shown), tokens=session.tokens)
