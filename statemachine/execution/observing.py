"""What is done after each step where that was asked for: a digest of the buffers, a line in the log."""

from collections.abc import Callable
from typing import Any, TypeVar

from statemachine.execution.timeline import Timeline, gives_digest

Context = TypeVar("Context")
Stop = Callable[[], bool]


def observed(
    timeline: Timeline[Context],
    context: Context,
    stop: Stop | None,
    *,
    digest_every: int,
    log: Callable[..., Any] | None,
) -> Stop | None:
    """`stop`, after the step has been digested and logged; just `stop`, if neither was asked for."""
    if not digest_every and not log:
        return stop
    coming = timeline.digestible() if digest_every else 0

    def observe() -> bool:
        nonlocal coming
        number = timeline.count - 1
        arc = timeline.arcs[-1]
        if digest_every and gives_digest(phase := timeline.program.phases[arc.source]):
            if coming % digest_every == 0 and not arc.raised:
                timeline.digests[number] = phase.digest(context)
            coming += 1
        if log:
            step = timeline.step(number)
            log(phase=step.phase, target=step.target, guards=dict(step.guards), elapsed_ns=step.elapsed_ns)
        return stop is not None and stop()

    return observe
