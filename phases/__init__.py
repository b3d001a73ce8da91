"""Text generation as six phases of a state machine: the `Generator` to embed, and what it takes and gives."""

import importlib
from typing import TYPE_CHECKING, Any

from phases.namesake import refuse_namesake

if TYPE_CHECKING:
    from phases.context import Generation as Generation
    from phases.errors import RequestError as RequestError
    from phases.generation import machine as machine
    from phases.generator import Generator as Generator
    from phases.generator import TextPiece as TextPiece
    from phases.request import Content as Content
    from phases.request import FinishReason as FinishReason
    from phases.request import GenerationRequest as GenerationRequest
    from phases.request import GenerationResult as GenerationResult
    from phases.request import Message as Message
    from phases.request import RowRequest as RowRequest
    from phases.request import SamplingParams as SamplingParams

_HOMES = {
    "Content": "request",
    "FinishReason": "request",
    "Generation": "context",
    "GenerationRequest": "request",
    "GenerationResult": "request",
    "Generator": "generator",
    "Message": "request",
    "RequestError": "errors",
    "RowRequest": "request",
    "SamplingParams": "request",
    "TextPiece": "generator",
    "machine": "generation",
}
__all__ = list(_HOMES)

refuse_namesake()


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that `phasewalk --help` need not import NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'phases' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(f"phases.{_HOMES[name]}"), name)
