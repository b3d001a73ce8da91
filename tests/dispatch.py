"""A machine that chooses among several ways: it works through tickets, each of which goes one of four routes."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from statemachine import Choice, End, JournalWriter, Machine, Phase, Run, Transition, guard


class Route(StrEnum):
    TOOLS = "tools"
    SEARCH = "search"
    REPLY = "reply"
    STOP = "stop"


@dataclass(slots=True)
class Desk:
    tickets: list[Route]
    paid: bool = False
    route: Route = Route.REPLY
    done: list[str] = field(default_factory=list)


class Plan(Phase[Desk, Route]):
    def run(self, context: Desk) -> Route:
        return context.tickets[len(context.done)] if len(context.done) < len(context.tickets) else Route.STOP

    def apply(self, context: Desk, outcome: Route) -> None:
        context.route = outcome


class Work(Phase[Desk, str]):
    def run(self, context: Desk) -> str:
        return self.name

    def apply(self, context: Desk, outcome: str) -> None:
        context.done.append(outcome)


@guard
def paid(context: Desk) -> bool:
    return context.paid


route = Choice("route", Route, lambda context: context.route)
plan, tools, search, reply, done = Plan(), Work("tools"), Work("search"), Work("reply"), End("done")


def desk(chosen: Choice[Desk] = route) -> Machine[Desk]:
    """The machine, that chooses by this; tools are for those who paid."""
    table = [
        Transition(plan, tools, chosen.is_("tools") & paid),
        Transition(plan, reply, chosen.is_("tools") & ~paid | chosen.is_("reply")),
        Transition(plan, search, chosen.is_("search")),
        Transition(plan, done, ~chosen.is_("tools", "search", "reply")),
        *(Transition(each, plan) for each in (tools, search, reply)),
    ]
    return Machine("desk", plan, table)


machine = desk()
TICKETS = (Route.TOOLS, Route.SEARCH, Route.REPLY, Route.SEARCH)


def ready(**options: Any) -> Run[Desk]:
    return Run(machine, Desk([*TICKETS]), **options)


def record(path: Path) -> Run[Desk]:
    run = ready(journal=JournalWriter(path), keep=True)
    run.start()
    return run
