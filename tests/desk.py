"""A machine that signals drive: a text is drafted, reviewed and published, by those who are let in."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from statemachine import Edit, End, Machine, Phase, Run, Signal, Status, Transition, Wait, guard


@dataclass(frozen=True)
class Approval:
    by: str
    stars: int = 3


@dataclass
class Text:
    length: int = 4  # drafts until it is written
    drafts: int = 0
    approvals: list[Approval] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Draft(Phase[Text, int]):
    def run(self, context: Text) -> int:
        return context.drafts + 1

    def apply(self, context: Text, outcome: int) -> None:
        context.drafts = outcome


class Review(Wait[Text, str]):
    def apply(self, context: Text, outcome: str) -> None:
        context.notes.append(outcome)


class Approve(Signal[Text, Approval]):
    """Approves a text; the thief is let in and thrown out."""

    def apply(self, context: Text, payload: Approval) -> None:
        context.approvals.append(payload)
        if payload.by == "the thief":
            raise PermissionError("the thief approves nothing")


class Correct(Edit[Text, int]):
    def run(self, context: Text, *, drafts: int) -> int:
        return drafts

    def apply(self, context: Text, outcome: int) -> None:
        context.drafts = outcome


@guard
def written(context: Text) -> bool:
    return context.drafts >= context.length


@guard
def begun(context: Text) -> bool:
    if context.drafts < 0:
        raise ArithmeticError("less than nothing is written")
    return context.drafts > 0


def desk(draft: Phase[Text, int] | None = None, **options: Any) -> Machine[Text]:
    """The machine, with this phase that drafts."""
    draft = draft or Draft()
    review, publish = Review(), Phase[Text, None]("publish")
    done, dropped = End[Text]("done"), End[Text]("dropped", status=Status.CANCELLED)
    signals = [
        Signal("hurry", to=review, sources=(draft,), when=begun),
        Signal("hurry", to=publish, sources=(review,)),
        Approve("approve", to=publish, sources=(review,), when=written),
        Signal("drop", to=dropped),
    ]
    table = [
        Transition(draft, draft, ~written),
        Transition(draft, review, written),
        Transition(review, publish),
        Transition(publish, done),
    ]
    settings = {"signals": signals, "edits": [Correct("correct", sources=(review,))], **options}
    return Machine("desk", start=draft, transitions=table, **settings)


machine = desk()


def reviewed(**options: Any) -> Run[Text]:
    """A run that waits for its review."""
    run = Run(machine, Text(), **options)
    assert run.start() is Status.WAITING
    return run


class Gate(Draft):
    """Says when it is at work, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__("draft")
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, context: Text) -> int:
        self.entered.release()
        assert self.open.acquire(timeout=30)
        return super().run(context)


@contextmanager
def driven(length: int = 4) -> Iterator[tuple[Run[Text], Callable[[], None], Callable[[], Status]]]:
    """A run that another thread drives, standing in its first draft; what lets it write one more; and to its rest."""
    gate = Gate()
    run = Run(desk(gate), Text(length))
    driver = threading.Thread(target=run.start)
    driver.start()
    assert gate.entered.acquire(timeout=30)

    def one_more() -> None:
        gate.open.release()
        assert gate.entered.acquire(timeout=30)

    def finish() -> Status:
        for _ in range(length):
            gate.open.release()
        driver.join(30)
        assert not driver.is_alive()
        return run.status

    try:
        yield run, one_more, finish
    finally:
        finish()
