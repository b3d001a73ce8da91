"""A phase that draws what its context does not key is found: however rarely it shows, and however late."""

import os
import random
from typing import Any

import numpy as np
import pytest
from bag import Bag, Sound, rules_of
from hypothesis import settings
from rule_checks import BRIEF, caught, hold

from statemachine import guard

pytestmark = pytest.mark.slow

ONCE = "when it runs again on the same context"
KEY = "key what is random by the context"


@guard
def far(context: Bag) -> bool:
    return context.count >= 50


class Rare(Sound):
    """Its outcome is 0 but once in many thousand years of testing."""

    def draw(self) -> float:
        return random.random()

    def run(self, context: Bag) -> int:
        return int(self.draw() < 1e-15)


class RareOfNumpy(Rare):
    def draw(self) -> float:
        return float(np.random.random())


class RareOfItsOwn(Rare):
    def __init__(self) -> None:
        super().__init__()
        self.source = random.Random(7)

    def draw(self) -> float:
        return self.source.random()


class RareOfItsOwnInNumpy(Rare):
    def __init__(self) -> None:
        super().__init__()
        self.source = np.random.default_rng(7)

    def draw(self) -> float:
        return float(self.source.random())


@pytest.mark.parametrize(
    ("phase", "generator"),
    [(Rare, "the generator of `random`"), (RareOfNumpy, "the generator of `numpy.random`"),
     (RareOfItsOwn, "its own generator 'source'"), (RareOfItsOwnInNumpy, "its own generator 'source'")],
)  # fmt: skip
def test_a_draw_that_shows_in_hardly_any_outcome(phase: type[Rare], generator: str) -> None:
    message = caught(rules_of(phase()))
    assert message.startswith(f"phase 'draw' draws from {generator}, so that sooner or later it gives another outcome")
    assert message.endswith(f"{ONCE}: {KEY}")


@pytest.mark.parametrize("from_step", [0, 1, 7, 30, 49])
def test_a_draw_from_the_system_at_any_step(from_step: int) -> None:
    class Late(Sound):
        def run(self, context: Bag) -> int:
            return int.from_bytes(os.urandom(6)) if context.count >= from_step else super().run(context)

    message = caught(rules_of(Late(), full=far, luck=never))
    assert f"phase 'draw' gives another outcome {ONCE} (" in message
    assert KEY in message


def test_a_draw_from_the_system_by_a_generator_without_state() -> None:
    class Holding(Sound):
        def __init__(self) -> None:
            super().__init__()
            self.own = random.SystemRandom()

        def run(self, context: Bag) -> int:
            return self.own.randrange(10**9)

    assert f"gives another outcome {ONCE} (" in caught(rules_of(Holding()))


def test_a_phase_that_counts_its_calls() -> None:
    class Counting(Sound):
        calls = 0

        def run(self, context: Bag) -> int:
            self.calls += 1
            return self.calls

    assert f"gives another outcome {ONCE} (" in caught(rules_of(Counting()))


def test_generators_that_the_context_keys_pass() -> None:
    class Keyed(Sound):
        def run(self, context: Bag) -> Any:
            return int(np.random.default_rng([context.seed, context.count]).integers(100)) + super().run(context)

    hold(rules_of(Keyed()), settings(BRIEF, max_examples=30))


@guard
def never(context: Bag) -> bool:
    return False
