"""What a run takes from outside: signals and edits of its machine, and the answer to a phase that waits."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from phases.debugger.values import short
from statemachine import Edit, GuardError, Phase, Run, Status, Wait
from statemachine.definition.phase import declared_outcome
from statemachine.definition.table import name_of


@dataclass(frozen=True, slots=True)
class Input:
    """Something that may come from outside."""

    kind: str  # "signal", "edit" or "answer"
    name: str
    words: str  # where it leads, what it takes
    possible: bool  # now


def inputs_of(run: Run[Any]) -> tuple[Input, ...]:
    """Everything that this run can be given, and whether it would be taken where it rests."""
    found = []
    if run.status is Status.WAITING:
        found.append(Input("answer", run.phase.name, f"takes {_declared(run.phase)}{until(run)}", True))
    try:
        signals, edits, odd = run.possible.signals, run.possible.edits, ""
    except GuardError as error:  # of the machine's own
        signals, edits, odd = (), (), f"; {short(str(error))}"
    for signal in run.machine.signals:
        words = str(signal).removeprefix(signal.name)
        found.append(Input("signal", signal.name, f"{words.removeprefix(': ')}{odd}", signal.name in signals))
    return (*found, *(Input("edit", edit.name, _sources(edit), edit.name in edits) for edit in run.machine.edits))


def until(run: Run[Any]) -> str:
    """By when the answer should come to a run that waits; "" if it can take its time."""
    try:
        deadline = run.deadline
    except Exception as error:  # of the machine's own
        return f", whose deadline raises {type(error).__name__}"
    if deadline is None:
        return ""
    try:
        return f", until {datetime.fromtimestamp(deadline, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (TypeError, ValueError, OverflowError, OSError):
        return f", until {deadline!r:.40}"


def _sources(edit: Edit[Any, Any]) -> str:
    return f"at {', '.join(map(name_of, edit.sources))}" if edit.sources else ""


def _declared(phase: Phase[Any, Any]) -> str:
    """The type of the answer that a phase waits for."""
    assert isinstance(phase, Wait)
    declared = declared_outcome(type(phase), Phase)
    return declared.__name__ if isinstance(declared, type) else str(declared).removeprefix("typing.")
