"""Define, check, run, record, replay, rewind and draw a machine of phases over any context."""

import importlib
from typing import TYPE_CHECKING, Any

from statemachine.definition.choice import Choice
from statemachine.definition.guard import Guard, guard
from statemachine.definition.machine import Machine
from statemachine.definition.migration import Migration
from statemachine.definition.phase import End, Failed, Phase, Status, Wait
from statemachine.definition.raised import Raised
from statemachine.definition.table import Edit, Signal, Transition
from statemachine.errors import (
    Finding,
    GuardError,
    IllegalMove,
    InvalidMachine,
    JournalError,
    OutcomeError,
    PhaseError,
    SnapshotError,
    StateMachineError,
)
from statemachine.execution.inbox import Possible
from statemachine.execution.lifecycle import Lifecycle
from statemachine.execution.resources import Resources
from statemachine.execution.run import Run
from statemachine.execution.timeline import Step
from statemachine.views.diagram import GraphvizMissing, to_dot, to_mermaid, to_pdf, to_png, to_svg

if TYPE_CHECKING:
    from statemachine.execution.ensemble import Ensemble as Ensemble
    from statemachine.record.divergence import Divergence as Divergence
    from statemachine.record.journal import Journal as Journal
    from statemachine.record.recover import recover as recover
    from statemachine.record.replay import Verdict as Verdict
    from statemachine.record.replay import play as play
    from statemachine.record.replay import verify as verify
    from statemachine.record.snapshot import Snapshot as Snapshot
    from statemachine.record.snapshot import restore as restore
    from statemachine.record.writer import JournalWriter as JournalWriter

# What records, replays and drives together is imported when it is asked for: who does neither need not wait for it.
_HOMES = {
    "Divergence": "record.divergence",
    "Ensemble": "execution.ensemble",
    "Journal": "record.journal",
    "JournalWriter": "record.writer",
    "Snapshot": "record.snapshot",
    "Verdict": "record.replay",
    "play": "record.replay",
    "recover": "record.recover",
    "restore": "record.snapshot",
    "verify": "record.replay",
}

__all__ = [
    "Choice",
    "Divergence",
    "Edit",
    "End",
    "Ensemble",
    "Failed",
    "Finding",
    "GraphvizMissing",
    "Guard",
    "GuardError",
    "IllegalMove",
    "InvalidMachine",
    "Journal",
    "JournalError",
    "JournalWriter",
    "Machine",
    "Migration",
    "OutcomeError",
    "Phase",
    "PhaseError",
    "Possible",
    "Raised",
    "Resources",
    "Run",
    "Signal",
    "Snapshot",
    "SnapshotError",
    "StateMachineError",
    "Status",
    "Step",
    "Transition",
    "Verdict",
    "Wait",
    "guard",
    "play",
    "recover",
    "restore",
    "to_dot",
    "to_mermaid",
    "to_pdf",
    "to_png",
    "to_svg",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'statemachine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"statemachine.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _save(run: Run[Any], *arguments: Any, **options: Any) -> None:
    importlib.import_module("statemachine.record.snapshot").save(run, *arguments, **options)


def _typed(value: Any, owner: Phase[Any, Any] | Signal[Any, Any]) -> Any:
    Lifecycle.typed = importlib.import_module("statemachine.record.exact").given  # from now on
    return Lifecycle.typed(value, owner)


Lifecycle.saver, Lifecycle.typed = _save, _typed  # here execution, which knows nothing of records, meets what records
