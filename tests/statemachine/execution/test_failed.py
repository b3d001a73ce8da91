"""A run that failed rests at the phase that raised, keeps what is its own, and tries that phase again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from rule_checks import BRIEF, hold

from statemachine import (
    Edit,
    End,
    Guard,
    GuardError,
    IllegalMove,
    Journal,
    JournalWriter,
    Machine,
    Phase,
    PhaseError,
    Resources,
    Run,
    Signal,
    Status,
    Transition,
    guard,
    play,
    restore,
    verify,
)
from statemachine.record.snapshot import load
from statemachine.testing import machine_rules


class GatewayDown(Exception):
    pass


@dataclass
class Payment:
    __pinned__ = ("down",)
    due: int
    paid: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)  # the numbers of the charges at which the gateway is down, once each


class Charge(Phase[Payment, int]):
    def run(self, context: Payment) -> int:
        if (number := len(context.paid)) in context.down:
            context.down.remove(number)
            raise GatewayDown("try again later")
        return number

    def apply(self, context: Payment, outcome: int) -> None:
        context.paid.append(outcome)


class Lower(Edit[Payment, int]):
    def run(self, context: Payment, **arguments: Any) -> int:
        return int(arguments["to"])

    def apply(self, context: Payment, outcome: int) -> None:
        context.due = outcome


class Ledger(Resources[Payment]):
    """What stands behind a payment: how often it was made to agree with the fields, and whether it is still held."""

    def __init__(self) -> None:
        self.synced = self.released = 0

    def sync(self, context: Payment) -> None:
        self.synced += 1

    def release(self, context: Payment) -> None:
        self.released += 1


@guard
def settled(context: Payment) -> bool:
    return len(context.paid) >= context.due


charge, done = Charge(), End[Payment]("done")
given_up = End[Payment]("given up", status=Status.CANCELLED)
machine = Machine(
    "payment",
    start=charge,
    transitions=[Transition(charge, charge, ~settled), Transition(charge, done, settled)],
    signals=[Signal("give up", to=given_up)],
    edits=[Lower("lower")],
)


def failed(down: list[int], **options: Any) -> Run[Payment]:
    run = Run(machine, Payment(4, down=down), **options)
    with pytest.raises(PhaseError, match="GatewayDown: try again later"):
        run.start()
    assert run.status is Status.FAILED
    return run


def by_steps(run: Run[Payment]) -> None:
    while run.status is not Status.DONE:
        run.step()


MOVES: dict[str, Callable[[Run[Payment]], object]] = {
    "resume": Run.resume,
    "steps": by_steps,
    "until": lambda run: run.until(lambda run: False),
    "iteration": list,
    "each": lambda run: list(run.each("charge")),
}


@pytest.mark.parametrize("interpreter", ["compiled", "transitions"])
@pytest.mark.parametrize("way", MOVES)
def test_every_way_of_driving_tries_again(way: str, interpreter: Any, tmp_path: Path) -> None:
    path, ledger = tmp_path / "j", Ledger()
    run = failed([2], interpreter=interpreter, resources=ledger, journal=JournalWriter(path))
    assert (run.phase, run.step_count, run.context.paid, ledger.released) == (charge, 2, [0, 1], 0)
    before = ledger.synced
    MOVES[way](run)
    assert ledger.synced > before  # whatever the phase left half done there
    assert (run.status, run.context.paid, ledger.released) == (Status.DONE, [0, 1, 2, 3], 1)
    again = Run(machine, Payment(4))
    verdict = verify(Journal.open(path), again)
    assert (verdict.divergence, verdict.ended, verdict.steps) == (None, "done", 4)
    assert play(Journal.open(path), Run(machine, Payment(4))) is None


def test_it_may_fail_again_and_again(tmp_path: Path) -> None:
    run = failed([1, 2, 3], journal=JournalWriter(tmp_path / "j"))
    for number in (2, 3):
        with pytest.raises(PhaseError):
            run.resume()
        assert (run.status, run.step_count) == (Status.FAILED, number)
    assert play(Journal.open(tmp_path / "j"), Run(machine, Payment(4))) is None
    assert run.resume() is Status.DONE
    assert verify(Journal.open(tmp_path / "j"), Run(machine, Payment(4))).divergence is None


def test_it_fails_twice_at_the_same_step(tmp_path: Path) -> None:
    run = failed([2, 2], journal=JournalWriter(tmp_path / "j"))
    with pytest.raises(PhaseError):
        run.step()
    assert run.step_count == 2
    assert play(Journal.open(tmp_path / "j"), other := Run(machine, Payment(4))) is None
    assert other.context.paid == [0, 1]
    run.resume()
    run.close()
    assert verify(Journal.open(tmp_path / "j"), Run(machine, Payment(4))).ended == "done"


def test_an_outcome_that_cannot_be_taken_leaves_no_digest() -> None:
    class Picky(Charge):
        def apply(self, context: Payment, outcome: int) -> None:
            if outcome < 0:
                raise GatewayDown("less than nothing")
            super().apply(context, outcome)

    phase = Picky("charge")
    table = [Transition(phase, phase, ~settled), Transition(phase, done, settled)]
    run = Run(Machine("payment", start=phase, transitions=table), Payment(2))
    with pytest.raises(PhaseError):
        run.take(-1, digest={"sum": -1})
    run.take(0)
    assert (run.step_count, run.timeline.digests) == (1, {})


def test_a_failed_run_travels_forks_and_is_saved(tmp_path: Path) -> None:
    run = failed([2])
    fork = run.fork()
    assert (fork.status, fork.context.paid) == (Status.PAUSED, [0, 1])
    assert fork.resume() is Status.DONE
    run.snapshot(tmp_path / "s")
    other = Run(machine, Payment(4))
    assert restore(load(tmp_path / "s"), other) is None
    assert other.resume() is Status.DONE
    run.goto(1)
    assert (run.status, run.context.paid) == (Status.PAUSED, [0])
    run.goto(2)
    assert run.status is Status.FAILED
    assert run.resume() is Status.DONE


def test_what_it_failed_of_may_be_mended_by_an_edit(tmp_path: Path) -> None:
    run = failed([2, 2, 2, 2], journal=JournalWriter(tmp_path / "j"))
    run.edit("lower", to=2)
    assert run.status is Status.PAUSED
    with pytest.raises(PhaseError):
        run.resume()
    run.context.down.clear()
    assert run.resume() is Status.DONE
    assert run.context.paid == [0, 1, 2]
    run.close()
    other = Run(machine, Payment(4))
    assert play(Journal.open(tmp_path / "j"), other) is None
    assert (other.status, other.context) == (Status.DONE, Payment(2, [0, 1, 2]))


def test_it_takes_no_signal_and_gives_its_resources_back_when_it_is_closed() -> None:
    ledger = Ledger()
    run = failed([2], resources=ledger)
    with pytest.raises(IllegalMove, match="it is failed"):
        run.signal("give up")
    run.close()
    assert ledger.released == 1
    with pytest.raises(IllegalMove, match="it was closed"):
        run.resume()


def test_an_interrupt_in_a_phase_can_be_gone_on_from(tmp_path: Path) -> None:
    class Interrupted(Charge):
        def run(self, context: Payment) -> int:
            if context.down:
                context.down.clear()
                raise KeyboardInterrupt
            return super().run(context)

    phase = Interrupted("charge")
    table = [Transition(phase, phase, ~settled), Transition(phase, done, settled)]
    run = Run(
        Machine("payment", start=phase, transitions=table), Payment(2, down=[0]), journal=JournalWriter(tmp_path / "j")
    )
    with pytest.raises(KeyboardInterrupt):
        run.start()
    assert run.status is Status.FAILED
    assert run.resume() is Status.DONE
    assert verify(Journal.open(tmp_path / "j"), Run(run.machine, Payment(2))).divergence is None


@pytest.mark.parametrize("interpreter", ["compiled", "transitions"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_exception_in_a_guard_names_the_guard(interpreter: Any, alone: bool) -> None:
    odd: Guard[Payment] = Guard("odd", lambda context: context.paid[99] > 0)
    when = odd if alone else odd & settled
    table = [Transition(charge, charge, ~when), Transition(charge, done, when)]
    run = Run(Machine("odd", start=charge, transitions=table), Payment(1), interpreter=interpreter)
    with pytest.raises(PhaseError, match=r"guard 'odd' raised IndexError: list") as failure:
        run.start()
    assert isinstance(failure.value.__cause__, GuardError)
    assert isinstance(failure.value.__cause__.__cause__, IndexError)


def test_the_rules_hold_for_runs_that_fail_and_go_on() -> None:
    contexts = st.builds(Payment, st.integers(1, 4), down=st.lists(st.integers(0, 3), max_size=4))
    changes = {"lower": st.fixed_dictionaries({"to": st.integers(1, 4)})}
    hold(machine_rules(machine, contexts, edits=changes, may_raise=GatewayDown), settings(BRIEF, max_examples=200))
