"""A machine to record: it counts, draws seeded numbers, can be edited and cancelled. And what forges its records."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import msgspec

from statemachine import Edit, End, JournalWriter, Machine, Phase, Run, Signal, Status, Transition, guard
from statemachine.record.writer import seal


@dataclass(slots=True)
class Walk:
    seed: int = 0
    limit: int = 20
    drawn: list[int] = field(default_factory=list)
    bonus: int = 0


class Draw(Phase[Walk, int]):
    """Draws a number that depends on seed and position only."""

    def run(self, context: Walk) -> int:
        return Random(context.seed * 1_000_003 + len(context.drawn)).randrange(1000) + context.bonus

    def apply(self, context: Walk, outcome: int) -> None:
        context.drawn.append(outcome)

    def digest(self, context: Walk) -> list[int]:
        return [len(context.drawn)]


class Note(Phase[Walk, str]):
    def run(self, context: Walk) -> str:
        return "even" if context.drawn[-1] % 2 == 0 else "odd"

    def apply(self, context: Walk, outcome: str) -> None:
        context.bonus += outcome == "odd"


class AddBonus(Edit[Walk, int]):
    def run(self, context: Walk, *, amount: int = 0) -> int:
        if amount <= 0:
            raise ValueError(f"amount is a positive number, not {amount}")
        return amount

    def apply(self, context: Walk, outcome: int) -> None:
        context.bonus += outcome


@guard
def far_enough(context: Walk) -> bool:
    return len(context.drawn) >= context.limit


@guard
def odd(context: Walk) -> bool:
    return context.drawn[-1] % 2 == 1


def walk(draw: Draw, **options: Any) -> Machine[Walk]:
    """The machine, with this phase that draws."""
    note = Note()
    table = [
        Transition(draw, note, odd & ~far_enough),
        Transition(draw, draw, ~odd & ~far_enough),
        Transition(draw, End("done"), far_enough),
        Transition(note, draw),
    ]
    signals = [Signal("stop", to=End("stopped", status=Status.CANCELLED)), Signal("skip", to=note, sources=(draw,))]
    return Machine("walk", start=draw, transitions=table, signals=signals, edits=[AddBonus("bonus")], **options)


draw = Draw()
machine = walk(draw)


def record(path: Path, *, seed: int = 0, limit: int = 20, **options: Any) -> Run[Walk]:
    """Record a whole run."""
    run = Run(
        machine, Walk(seed, limit), journal=JournalWriter(path), request={"seed": seed, "limit": limit}, **options
    )
    run.start()
    return run


def fresh(path: Path) -> Run[Walk]:
    """A ready run of what a journal recorded."""
    from statemachine import Journal

    request = Journal.open(path).header.request
    return Run(machine, Walk(request["seed"], request["limit"]), request=request)


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a journal as plain values, the header first."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def forge(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records as somebody would who wants them believed: with a chain that fits."""
    chain, data = 0, b""
    for number, record in enumerate(values := list(records)):
        line = msgspec.json.encode({name: value for name, value in record.items() if name != "c"}) + b"\n"
        if record.get("type") == "end" or number == len(values) - 1:
            line, chain = seal(line, chain)
        else:
            chain = crc32(line, chain)
        data += line
    path.write_bytes(data)
    return path
