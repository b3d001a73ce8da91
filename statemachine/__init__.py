"""Define, check, run, record, replay, rewind and draw a machine of phases over any context."""

import importlib
from typing import TYPE_CHECKING, Any

from statemachine.definition.guard import Guard, guard
from statemachine.definition.machine import Machine
from statemachine.definition.phase import End, Phase, Status
from statemachine.definition.table import Edit, Signal, Transition
from statemachine.errors import (
    Finding,
    GuardError,
    IllegalMove,
    InvalidMachine,
    JournalError,
    PhaseError,
    SnapshotError,
    StateMachineError,
)
from statemachine.execution.resources import Resources
from statemachine.execution.run import Run
from statemachine.execution.timeline import Step
from statemachine.views.diagram import GraphvizMissing, to_dot, to_mermaid, to_png, to_svg

if TYPE_CHECKING:
    from statemachine.record.journal import Journal as Journal
    from statemachine.record.journal import JournalWriter as JournalWriter
    from statemachine.record.replay import Divergence as Divergence
    from statemachine.record.snapshot import Snapshot as Snapshot

_HOMES = {
    "Divergence": "record.replay",
    "Journal": "record.journal",
    "JournalWriter": "record.journal",
    "Snapshot": "record.snapshot",
}

__all__ = [
    "Divergence",
    "Edit",
    "End",
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
    "Phase",
    "PhaseError",
    "Resources",
    "Run",
    "Signal",
    "Snapshot",
    "SnapshotError",
    "StateMachineError",
    "Status",
    "Step",
    "Transition",
    "guard",
    "to_dot",
    "to_mermaid",
    "to_png",
    "to_svg",
]


def __getattr__(name: str) -> Any:
    """Import what records and replays when it is asked for: a machine that does neither need not wait for it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'statemachine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"statemachine.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
