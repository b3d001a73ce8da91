"""Define, check, run and draw a machine of phases over any context."""

from statemachine.check import Finding
from statemachine.diagram import GraphvizMissing, to_dot, to_mermaid, to_png, to_svg
from statemachine.errors import GuardError, IllegalMove, InvalidMachine, PhaseError, StateMachineError
from statemachine.guard import Guard, guard
from statemachine.machine import Machine
from statemachine.phase import End, Phase, Status
from statemachine.run import Run, Step
from statemachine.table import Signal, Transition

__all__ = [
    "End",
    "Finding",
    "GraphvizMissing",
    "Guard",
    "GuardError",
    "IllegalMove",
    "InvalidMachine",
    "Machine",
    "Phase",
    "PhaseError",
    "Run",
    "Signal",
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
