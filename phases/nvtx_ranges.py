"""Phases as NVTX ranges: Nsight Systems then shows, above the kernels, which phase launched them or waited."""

from copy import copy
from dataclasses import replace
from typing import Any

from phases.context import Generation
from statemachine import Machine
from statemachine.definition.table import name_of


def with_ranges(machine: Machine[Generation]) -> Machine[Generation]:
    """Give the same machine, each phase of which opens a range of its name while it runs.

    Raises
    ------
    ImportError
        If the package nvtx is not installed.
    """
    try:
        import nvtx
    except ImportError as error:
        raise ImportError("NVTX ranges need the package nvtx: pip install nvtx") from error
    ranged: dict[str, Any] = {name: copy(phase) for name, phase in machine.phases.items()}
    for name, phase in ranged.items():
        phase.run = nvtx.annotate(name, domain="phasewalk")(phase.run)
    return replace(
        machine,
        start=ranged[machine.start.name],
        transitions=[
            replace(way, source=ranged[name_of(way.source)], target=ranged[name_of(way.target)])
            for way in machine.transitions
        ],
        signals=[
            replace(signal, to=ranged[name_of(signal.to)], sources=tuple(map(name_of, signal.sources)))
            for signal in machine.signals
        ],
    )
