"""Generators of random numbers that no context keys: those of the process, and those that a phase holds."""

import pickle
import random
import sys
from typing import Any

from statemachine.definition.phase import Phase


def generators_of(phase: Phase[Any, Any]) -> dict[str, Any]:
    """The states of the generators that a phase can draw from without its context, by how a message calls them."""
    found: dict[str, Any] = {"the generator of `random`": random.getstate()}
    numpy = sys.modules.get("numpy.random")
    if numpy:
        found["the generator of `numpy.random`"] = pickle.dumps(numpy.get_state(legacy=False))
    kinds = (random.Random, numpy.Generator, numpy.RandomState) if numpy else (random.Random,)
    for name, value in vars(phase).items():
        if isinstance(value, kinds) and not isinstance(value, random.SystemRandom):  # which has no state
            found[f"its own generator {name!r}"] = pickle.dumps(value)
    return found
