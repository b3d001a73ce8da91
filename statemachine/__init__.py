"""Define, check, run, record, replay, rewind and draw a machine of phases over any context."""

import importlib
from typing import TYPE_CHECKING, Any

from statemachine.check import Finding
from statemachine.diagram import GraphvizMissing, to_dot, to_mermaid, to_png, to_svg
from statemachine.errors import (
    GuardError,
    IllegalMove,
    InvalidMachine,
    JournalError,
    PhaseError,
    SnapshotError,
    StateMachineError,
)
from statemachine.guard import Guard, guard
from statemachine.machine import Machine
from statemachine.phase import End, Phase, Status
from statemachine.resources import Resources
from statemachine.run import Run
from statemachine.table import Edit, Signal, Transition
from statemachine.timeline import Step

if TYPE_CHECKING:
    from statemachine.journal import Journal as Journal
    from statemachine.journal import JournalWriter as JournalWriter
    from statemachine.replay import Divergence as Divergence
    from statemachine.snapshot import Snapshot as Snapshot

_HOMES = {"Divergence": "replay", "Journal": "journal", "JournalWriter": "journal", "Snapshot": "snapshot"}

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
