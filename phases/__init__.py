"""Text generation as six phases of a state machine: the `Generator` to embed, what it takes and gives, and errors."""

import importlib
from typing import TYPE_CHECKING, Any

from phases.namesake import refuse_namesake

if TYPE_CHECKING:
    from gpu.errors import CapacityError as CapacityError
    from gpu.errors import CheckpointError as CheckpointError
    from gpu.errors import LogitsError as LogitsError
    from gpu.errors import NoFreeRows as NoFreeRows
    from gpu.errors import SelfCheckError as SelfCheckError
    from phases.candidates import Candidate as Candidate
    from phases.constraint import Constraint as Constraint
    from phases.context import Generation as Generation
    from phases.errors import ConstraintError as ConstraintError
    from phases.errors import RequestError as RequestError
    from phases.generation import machine as machine
    from phases.generator import Generator as Generator
    from phases.logits_phase import LogitsPhase as LogitsPhase
    from phases.logprobs import Score as Score
    from phases.logprobs import TokenLogprob as TokenLogprob
    from phases.request import Content as Content
    from phases.request import FinishReason as FinishReason
    from phases.request import GenerationRequest as GenerationRequest
    from phases.request import GenerationResult as GenerationResult
    from phases.request import Message as Message
    from phases.request import RowRequest as RowRequest
    from phases.request import RowResult as RowResult
    from phases.request import SamplingParams as SamplingParams
    from phases.streaming import TextPiece as TextPiece
    from statemachine.errors import IllegalMove as IllegalMove
    from statemachine.errors import JournalError as JournalError
    from statemachine.errors import PhaseError as PhaseError
    from statemachine.errors import SnapshotError as SnapshotError

_HOMES = {
    "Candidate": "phases.candidates",
    "CapacityError": "gpu.errors",
    "CheckpointError": "gpu.errors",
    "Constraint": "phases.constraint",
    "ConstraintError": "phases.errors",
    "Content": "phases.request",
    "FinishReason": "phases.request",
    "Generation": "phases.context",
    "GenerationRequest": "phases.request",
    "GenerationResult": "phases.request",
    "Generator": "phases.generator",
    "IllegalMove": "statemachine.errors",
    "JournalError": "statemachine.errors",
    "LogitsError": "gpu.errors",
    "LogitsPhase": "phases.logits_phase",
    "Message": "phases.request",
    "NoFreeRows": "gpu.errors",
    "PhaseError": "statemachine.errors",
    "RequestError": "phases.errors",
    "RowRequest": "phases.request",
    "RowResult": "phases.request",
    "SamplingParams": "phases.request",
    "Score": "phases.logprobs",
    "SelfCheckError": "gpu.errors",
    "SnapshotError": "statemachine.errors",
    "TextPiece": "phases.streaming",
    "TokenLogprob": "phases.logprobs",
    "machine": "phases.generation",
}
__all__ = list(_HOMES)

refuse_namesake()


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `phasewalk --help` need not import NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'phases' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
