"""A machine over a context that is large, deep and odd: what a debugger has to show without freezing or failing."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from statemachine import End, Guard, Machine, Phase, Signal, Transition


class Colour(Enum):
    RED = "red"


class Secretive:
    """Its repr raises an error that says what it was to hide."""

    def __repr__(self) -> str:
        raise RuntimeError("the password is hunter2")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("the password is hunter2")

    __hash__ = None  # type: ignore[assignment]


class Plain:
    """Has neither a repr nor an equality of its own."""

    def __init__(self, size: int) -> None:
        self.size = size


@dataclass
class Node:
    """Part of a ring."""

    name: str
    next: "Node | None" = field(default=None)


def ring() -> Node:
    one = Node("one")
    one.next = Node("two", one)
    return one


def deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(100_000):
        made = [made]
    return made


@dataclass
class Odd:
    million: list[int] = field(default_factory=lambda: list(range(1_000_000)))
    blob: bytes = b"\x00" * 5_000_000
    pixels: Any = field(default_factory=lambda: np.zeros((1000, 1000), np.float32))
    ring: Node = field(default_factory=ring)
    secretive: Secretive = field(default_factory=Secretive)
    password: str = field(default="hunter2", repr=False)
    plain: Plain = field(default_factory=lambda: Plain(3))
    colour: Colour = Colour.RED
    huge: int = 10**5000
    text: str = "a\x1b[31mred\u202e\nand\tmore"
    nan: float = float("nan")
    mixed: dict[Any, Any] = field(default_factory=lambda: {1: {2, 3}, (4, 5): None, "six": [Plain(7)]})
    steps: int = 0


class Work(Phase[Odd, int]):
    def run(self, context: Odd) -> int:
        return context.steps + 1

    def apply(self, context: Odd, outcome: int) -> None:
        context.steps = outcome
        context.pixels[0, 0] = outcome
        context.plain.size += 1


class Rest(Phase[Odd, Any]):
    """Its outcome is as odd as the context."""

    def run(self, context: Odd) -> Any:
        return context.secretive

    def apply(self, context: Odd, outcome: Any) -> None:
        pass


over: Guard[Odd] = Guard("over", lambda context: context.steps >= 5)
work, rest = Work(), Rest()
machine = Machine(
    "odd",
    work,
    [Transition(work, rest), Transition(rest, work, ~over), Transition(rest, End("done"), over)],
    signals=[Signal("off", End("off"))],
)
