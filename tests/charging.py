"""A machine that tries again: a charge may fail in ways that the table knows, each with a way of its own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from statemachine import End, JournalWriter, Machine, Phase, Raised, Resources, Run, Status, Transition, guard


class GatewayError(Exception):
    """What a gateway raises; nothing raises it itself."""


class GatewayDown(GatewayError):
    pass


class GatewayTimeout(GatewayDown):
    pass


class CardRefused(Exception):
    pass


@dataclass(slots=True)
class Purchase:
    """`script` says what comes of each attempt: a class of exceptions by name, or "" for success."""

    __pinned__ = ("line",)

    script: list[str]
    tries: int = 3
    attempts: int = 0
    log: list[str] = field(default_factory=list)
    line: list[str] = field(default_factory=list)  # stands for a connection that a failed charge leaves half used


class Charge(Phase[Purchase, int]):
    def run(self, context: Purchase) -> int:
        context.line.append("half")
        what = context.script[context.attempts] if context.attempts < len(context.script) else ""
        if what:
            raise {kind.__name__: kind for kind in KINDS}[what](f"attempt {context.attempts}")
        context.line.append("whole")
        return 100 + context.attempts

    def apply(self, context: Purchase, outcome: int) -> None:
        context.attempts += 1
        context.log.append(f"paid {outcome}")

    def apply_error(self, context: Purchase, raised: Raised) -> None:
        context.attempts += 1
        context.log.append(f"{raised.way}: {raised}")


class BackOff(Phase[Purchase, str]):
    def run(self, context: Purchase) -> str:
        return f"waited before {context.attempts}"

    def apply(self, context: Purchase, outcome: str) -> None:
        context.log.append(outcome)


class Line(Resources[Purchase]):
    """Clears the line whenever it may hold what a step left half done."""

    def sync(self, context: Purchase) -> None:
        context.line[:] = ["synced"]

    def fork(self, context: Purchase) -> Purchase:
        return Purchase([*context.script], context.tries, line=["forked"])


KINDS = (GatewayDown, GatewayTimeout, CardRefused, ValueError)


@guard
def tries_left(context: Purchase) -> bool:
    return context.attempts < context.tries


charge, back_off, paid, dropped = Charge(), BackOff(), End("paid"), End("dropped", status=Status.CANCELLED)
TABLE = [
    Transition(charge, paid),
    Transition(charge, back_off, tries_left, raises=GatewayDown),
    Transition(charge, dropped, ~tries_left, raises=GatewayDown),
    Transition(charge, dropped, raises=CardRefused),
    Transition(back_off, charge),
]
machine = Machine("purchase", charge, TABLE)


def ready(*script: str, of: Machine[Purchase] = machine, **options: Any) -> Run[Purchase]:
    return Run(of, Purchase([*script]), resources=Line(), keep=True, **options)


def record(path: Path, *script: str) -> Run[Purchase]:
    run = ready(*script, journal=JournalWriter(path))
    run.start()
    return run
