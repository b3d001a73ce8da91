"""What a run takes from outside: signals and edits of its machine, and the answer to a phase that waits."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from statemachine import Phase, Run, Status, Wait
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
    for signal in run.machine.signals:
        sources = ", ".join(name_of(source) for source in signal.sources) or "any phase"
        words = f"from {sources} to {name_of(signal.to)}"
        found.append(Input("signal", signal.name, words, is_possible(run, signal.name)))
    free = run.status in (Status.READY, Status.PAUSED, Status.WAITING, Status.FAILED)
    return (*found, *(Input("edit", edit.name, "", free) for edit in run.machine.edits))


def is_possible(run: Run[Any], name: str) -> bool:
    """Whether a resting run would take the signal of this name now."""
    if run.status.ended or run.phase.final:
        return False
    entries = [signal for signal in run.machine.signals if signal.name == name]
    return any(not entry.sources or run.phase.name in map(name_of, entry.sources) for entry in entries)


def send(run: Run[Any], name: str, payload: Any = None) -> None:
    """Send a signal, with what it carries if it carries something."""
    sent: Callable[..., None] = run.signal
    if payload is None:
        sent(name)
    else:
        sent(name, payload)


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


def _declared(phase: Phase[Any, Any]) -> str:
    """The type of the answer that a phase waits for."""
    assert isinstance(phase, Wait)
    declared = declared_outcome(type(phase), Phase)
    return declared.__name__ if isinstance(declared, type) else str(declared).removeprefix("typing.")
