"""Tells what a run does that does not come to an end."""

from collections.abc import Mapping, Sequence
from typing import Any

from statemachine.execution.timeline import Step
from statemachine.testing.same import same, shown


def endless(steps: Sequence[Step], fields: Sequence[Mapping[Any, Any]]) -> str:
    """Where such a run goes round, with which guards, and which fields of its context stay as they are there.

    Parameters
    ----------
    steps, fields
        What it did when nobody sent a signal or made an edit, and its context before the first step and after each.
    """
    half = len(steps) // 2
    ways: dict[str, None] = {}
    for step in steps[half:]:
        guards = " & ".join(name if value else f"~{name}" for name, value in step.guards.items())
        ways[f"  {step.phase} -> {step.target}" + (f" when {guards}" if guards else "")] = None
    last, before = fields[-1], fields[half:-1]
    still = [name for name in last if all(name in each and same(each[name], last[name]) for each in before)]
    lines = [
        f"a run that must end goes on for ever: {len(steps)} steps, without a signal or an edit, led to no end, and "
        f"the last {len(steps) - half} of them go round", *ways,
        f"where {', '.join(f'{name} ({shown(last[name])})' for name in still) or 'no field'} does not change: let "
        f"what these guards ask for come true, or give a greater max_steps than {len(steps)} to a run that needs it",
    ]  # fmt: skip
    return "\n".join(lines)
