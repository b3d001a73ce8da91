"""An agent with tools, and a person who approves what costs money: asked by one process, answered in another."""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from statemachine import Choice, End, Machine, Phase, Run, Snapshot, Transition, Wait, guard, restore

DAY = 86_400.0  # seconds
TOOLS = {"look_up": lambda what: f"{what}: 340 euros to Ada Ltd", "pay": lambda what: f"paid {what}"}


@dataclass(frozen=True)
class Call:
    tool: str
    argument: str


@dataclass(frozen=True)
class Approval:
    call: int  # which one: how many were planned before it
    yes: bool
    by: str = "nobody"


class StaleApproval(Exception):
    """An approval of another call than the one that waits for it."""


@dataclass
class Task:
    question: str
    asked: float  # seconds since the epoch: time comes from outside, a machine reads no clock
    plan: list[Call] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    approval: Approval | None = None


def new_context() -> Task:
    return Task("Please settle invoice 12.", asked=1_000.0)


def language_model(task: Task) -> Call:
    """Stands for a model. Here goes `generator.generate(messages).text` of a `phases.Generator`, parsed to a Call."""
    script = [Call("look_up", "invoice 12"), Call("pay", "340 euros to Ada Ltd")]
    return script[len(task.results)] if len(task.results) < len(script) else Call("reply", task.results[-1])


class Plan(Phase[Task, Call]):
    def run(self, task: Task) -> Call:
        return language_model(task)

    def apply(self, task: Task, outcome: Call) -> None:
        task.plan.append(outcome)


class UseTool(Phase[Task, str]):
    def run(self, task: Task) -> str:  # a tool that pays gets a key, too: killed half-way, this runs again
        return TOOLS[task.plan[-1].tool](task.plan[-1].argument)

    def apply(self, task: Task, outcome: str) -> None:
        task.results.append(outcome)


class Approve(Wait[Task, Approval]):
    def apply(self, task: Task, outcome: Approval) -> None:
        if outcome.call != len(task.plan) - 1:  # refused, and the run waits on
            raise StaleApproval(
                f"{outcome.by} approves call {outcome.call}, but call {len(task.plan) - 1} is asked for"
            )
        task.approval = outcome
        if not outcome.yes:
            task.results.append(f"refused by {outcome.by}")

    def deadline(self, task: Task) -> float:
        return task.asked + DAY

    def late(self, task: Task) -> Approval:
        return Approval(len(task.plan) - 1, yes=False)


@guard
def approved(task: Task) -> bool:
    return task.approval is not None and task.approval.yes


tool = Choice("tool", ["look_up", "pay", "reply"], lambda task: task.plan[-1].tool)
plan, use_tool, approve = Plan(), UseTool(), Approve()
machine = Machine(
    "agent",
    start=plan,
    transitions=[
        Transition(plan, use_tool, tool.is_("look_up")),
        Transition(plan, approve, tool.is_("pay")),
        Transition(plan, End("reply"), tool.is_("reply")),
        Transition(approve, use_tool, approved),
        Transition(approve, plan, ~approved),
        Transition(use_tool, plan),
    ],
)


def ask(file: Path) -> None:
    request = {"question": "Please settle invoice 12.", "asked": time.time()}
    run = Run(machine, Task(**request), request=request)
    print("first process:", run.start(), "at", run.phase.name, "for", run.context.plan[-1])
    run.snapshot(file)


def answer(file: Path) -> None:
    snapshot = Snapshot.open(file)
    run = Run(machine, Task(**snapshot.header.request), request=snapshot.header.request)
    restore(snapshot, run)
    print("second process:", run.status, "at", run.phase.name, "for", run.deadline - run.context.asked, "s at most")
    for approval in (Approval(0, yes=True, by="Bob"), Approval(1, yes=True, by="Ada")):
        try:
            run.time_out() if time.time() > run.deadline else run.answer(approval)
        except StaleApproval as stale:
            print("stale:", stale)
    print(f"{run.resume()}:", "; ".join(run.context.results))


def main() -> None:
    file = f"{tempfile.mkdtemp(prefix='agent-')}/task.snapshot"
    for part in ("ask", "answer"):
        subprocess.run([sys.executable, __file__, part, file], check=True)


if __name__ == "__main__":
    {"ask": ask, "answer": answer}[sys.argv[1]](Path(sys.argv[2])) if sys.argv[1:] else main()
