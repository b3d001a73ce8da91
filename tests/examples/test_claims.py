"""What the examples claim is true: in every order of events that Hypothesis finds, and after a kill at any step."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import agent
import elevator
import look_ups
import order
import pytest
import saga
import tcp
import traffic_lights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from statemachine import (
    Ensemble,
    Journal,
    JournalWriter,
    Machine,
    PhaseError,
    Run,
    Snapshot,
    Status,
    Transition,
    restore,
    verify,
)  # fmt: skip
from statemachine.testing import MachineRules, machine_rules, run_rules

pytestmark = pytest.mark.slow

INTERPRETERS = ("compiled", "transitions")
BRIEF = settings(max_examples=25, stateful_step_count=10, deadline=None, derandomize=True, database=None)


# --- every machine ------------------------------------------------------------------------------------------------

ORDERS = st.builds(order.Order, outage=st.integers(0, 4), patience=st.just(0.0))
TASKS = st.builds(agent.Task, st.just("Settle it."), asked=st.just(0.0))
TRIPS = st.builds(saga.Trip, sold_out=st.sampled_from(["", *saga.PRICES]), silent=st.sampled_from([0, 2, 9]))
FLOORS = st.integers(0, elevator.TOP)
LIFTS = st.builds(elevator.Lift, FLOORS, st.sampled_from([1, -1]), st.lists(FLOORS, unique=True))
EUROS = st.sampled_from([0, *saga.PRICES.values()])
ANSWERS = st.builds(agent.Approval, st.integers(0, 2), st.booleans())
RULES: Mapping[str, type[MachineRules]] = {
    "order": machine_rules(order.machine, ORDERS, must_end=True),
    "agent": machine_rules(
        agent.machine, TASKS, answers={"approve": ANSWERS}, may_raise=agent.StaleApproval, must_end=True
    ),
    "saga": machine_rules(
        saga.machine, TRIPS, answers={"by_hand": EUROS}, may_raise=saga.ShortOfMoney, must_end=True
    ),
    "elevator": machine_rules(elevator.machine, LIFTS, signals={"call": FLOORS}, must_end=True),
    "tcp": machine_rules(tcp.machine, tcp.Connection, must_end=True),
    "traffic_lights": machine_rules(
        traffic_lights.machine, st.builds(traffic_lights.Crossing, st.integers(0, 9)), must_end=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_it_keeps_the_rules(name: str) -> None:
    run_rules(RULES[name], BRIEF)


@pytest.mark.parametrize("module", [order, agent, saga, elevator, tcp, traffic_lights, look_ups])
def test_both_interpreters_take_the_same_steps(module: Any) -> None:
    assert module.machine.check() == []
    runs = [Run(module.machine, module.new_context(), interpreter=interpreter) for interpreter in INTERPRETERS]
    for run in runs:
        run.start()
    assert runs[0].status in (Status.DONE, Status.WAITING, Status.CANCELLED)
    assert [*runs[0].steps()] == [*runs[1].steps()]
    assert runs[0].context == runs[1].context


# --- order --------------------------------------------------------------------------------------------------------


def shop(folder: Path) -> tuple[Run[order.Order], list[str]]:
    run = order.begin_or_go_on(folder)
    return run, order.entries(run.context)


@pytest.mark.parametrize("count", range(8))
def test_an_order_that_is_left_after_any_step_is_recovered_and_charged_once(count: int, tmp_path: Path) -> None:
    first, _ = shop(tmp_path)
    for _ in range(count):
        first.step()
    journal = tmp_path / "order.jsonl"
    left = journal.read_bytes() if count else b""
    first.close()
    journal.write_bytes(left) if count else journal.unlink(missing_ok=True)  # as a kill would have left it
    run, _ = shop(tmp_path)
    assert run.step_count == count
    if not run.status.ended:
        run.resume() if count else run.start()
    assert run.status is Status.DONE
    assert shop(tmp_path)[1] == ["charged 30"]


def test_an_order_killed_when_the_bank_has_the_money_is_charged_once_or_refunded(tmp_path: Path) -> None:
    for name, then in (("pays", ["charged 30"]), ("cancels", ["charged 30", "refunded 30"])):
        folder = tmp_path / name
        folder.mkdir()
        killed = subprocess.run([sys.executable, order.__file__, folder], check=False)
        assert killed.returncode == -9
        run, entries = shop(folder)
        assert (entries, run.phase.name) == (["charged 30"], "charge")  # and no record says that it is paid
        if name == "cancels":
            run.signal("cancel")
        run.resume()
        assert order.entries(run.context) == then
        assert run.status is (Status.CANCELLED if name == "cancels" else Status.DONE)


@pytest.mark.parametrize("phase", ["charge", "back_off", "pack", "ship"])
def test_an_order_is_cancelled_with_its_money_back_until_it_is_packed(phase: str, tmp_path: Path) -> None:
    run, _ = shop(tmp_path)
    run.until(order.machine.phases[phase])
    assert ("cancel" in run.possible.signals) is (phase != "ship")
    run.signal("cancel", wait=True)
    run.resume()
    assert run.status is (Status.DONE if phase == "ship" else Status.CANCELLED)
    charged = {"pack": ["charged 30", "refunded 30"], "ship": ["charged 30"]}
    assert order.entries(run.context) == charged.get(phase, [])


def test_an_order_is_given_up_after_three_attempts(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    bank.touch()
    run = Run(order.machine, order.Order(outage=9, patience=0.0, bank=str(bank)))
    assert run.start() is Status.CANCELLED
    assert [step.phase for step in run.steps()] == ["charge", "back_off"] * 2 + ["charge", "refund"]
    assert order.entries(run.context) == []


# --- agent --------------------------------------------------------------------------------------------------------


def asked(**options: Any) -> Run[agent.Task]:
    run = Run(agent.machine, agent.new_context(), **options)
    assert run.start() is Status.WAITING
    return run


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_stale_approval_is_refused_and_the_agent_waits_on(interpreter: Any) -> None:
    run = asked(interpreter=interpreter)
    before = [*run.context.results]
    with pytest.raises(agent.StaleApproval, match="Bob approves call 0, but call 1 is asked for"):
        run.answer(agent.Approval(0, yes=True, by="Bob"))
    assert (run.status, run.context.results, run.context.approval) == (Status.WAITING, before, None)
    run.answer(agent.Approval(1, yes=True, by="Ada"))
    assert run.resume() is Status.DONE
    assert run.context.results[-1] == "paid 340 euros to Ada Ltd"


@pytest.mark.parametrize("late", [True, False])
def test_nothing_is_paid_that_nobody_approves_in_time(late: bool) -> None:
    run = asked()
    assert run.deadline == run.context.asked + agent.DAY
    run.time_out() if late else run.answer(agent.Approval(1, yes=False, by="Ada"))
    assert run.resume() is Status.DONE
    assert run.context.results == ["invoice 12: 340 euros to Ada Ltd", f"refused by {'nobody' if late else 'Ada'}"]


def test_a_waiting_agent_is_restored_from_its_file_alone(tmp_path: Path) -> None:
    agent.ask(tmp_path / "s")
    request = Snapshot.open(tmp_path / "s").header.request
    run = Run(agent.machine, agent.Task(**request), request=request)
    assert restore(tmp_path / "s", run) is None
    assert (run.status, run.phase.name) == (Status.WAITING, "approve")


# --- saga ---------------------------------------------------------------------------------------------------------


class AgreeingTrip(RULES["saga"]):  # type: ignore[misc]
    """Wherever a run goes, whatever fails on the way."""

    @invariant()
    def money_and_bookings_agree(self) -> None:
        trip, end = self.run.context, self.run.phase.name
        assert trip.money == 1_000 - sum(trip.booked.values())
        if end == "booked":
            assert trip.booked == saga.PRICES
        elif end == "undone":
            assert (trip.booked, trip.money) == ({}, 1_000)


def test_money_and_bookings_agree_at_every_end() -> None:
    coverage = run_rules(AgreeingTrip, settings(BRIEF, max_examples=60, stateful_step_count=15))
    assert len(coverage.transitions) == len(saga.machine.transitions)
    never = {name for name, count in coverage.transitions.items() if not count}
    assert never <= {"by_hand -> undo when more_to_undo"}  # which the next test takes


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("silent", [0, 1, 3, 9])
@pytest.mark.parametrize("sold_out", ["", *saga.PRICES])
def test_every_trip_is_booked_whole_or_undone_whole(sold_out: str, silent: int, interpreter: Any) -> None:
    run = Run(saga.machine, saga.Trip(sold_out=sold_out, silent=silent), interpreter=interpreter)
    run.start()
    while not run.status.over:
        with pytest.raises(saga.ShortOfMoney, match="0 came back: call again"):
            run.answer(0)
        if run.answer(saga.paid_last(run.context)).target == "undo":
            run.resume()
    assert (run.context.money, run.context.booked) == ((1_000, {}) if sold_out else (180, saga.PRICES))
    assert (run.status is Status.CANCELLED) is bool(sold_out)


def test_what_was_booked_is_undone_in_reverse_and_every_undo_is_tried_again() -> None:
    run = Run(saga.machine, saga.Trip(sold_out="car", silent=2))
    undone = [step.raised.message if step.raised else "undone" for step in run if step.phase == "undo"]
    tries = [[f"{what}, try 1", f"{what}, try 2", "undone"] for what in ("hotel", "flight")]
    assert undone == tries[0] + tries[1]


# --- elevator -----------------------------------------------------------------------------------------------------

LONGEST = 4 * elevator.TOP + 6  # steps: there and back, with a stop at every floor


def longest_wait(machine: Machine[elevator.Lift], start: int, calls: Sequence[Sequence[int]]) -> int:
    """The most steps that a call was open, where so many floors are called before each step."""
    run, since = Run(machine, elevator.Lift(floor=start)), dict[int, int]()
    run.step()
    longest = 0
    for floors in calls:
        for floor in floors:
            run.signal("call", floor)
        since = {floor: since.get(floor, run.step_count) for floor in run.context.calls}
        if run.status is not Status.WAITING:
            run.step()
            since = {floor: began for floor, began in since.items() if floor in run.context.calls}
        longest = max([longest, *(run.step_count - began for began in since.values())])
    return longest


PRESSED = st.lists(st.lists(FLOORS, max_size=3), max_size=120)


@given(start=FLOORS, calls=PRESSED)
@settings(max_examples=100, deadline=None)
def test_nobody_waits_for_ever_whatever_buttons_are_pressed(start: int, calls: list[list[int]]) -> None:
    assert longest_wait(elevator.machine, start, calls) <= LONGEST


def test_a_lift_that_served_its_own_floor_first_would_let_others_wait() -> None:
    """Somebody at floor 0 keeps pressing the button there, and somebody waits at the top."""
    here, elsewhere, named = elevator.called_here, elevator.called_elsewhere, elevator.machine.phases
    choose, rest = named["choose"], [way for way in elevator.machine.transitions if way.source != named["choose"]]
    ways = [("doors", here), ("move", elsewhere & ~here), ("idle", ~here & ~elsewhere)]
    table = [*(Transition(choose, named[to], when) for to, when in ways), *rest]
    stubborn = Machine("stubborn", choose, table, signals=elevator.machine.signals)
    pressed = [[0, elevator.TOP]] * 200
    assert longest_wait(stubborn, 0, pressed) > 150
    assert longest_wait(elevator.machine, 0, pressed) <= LONGEST


def test_a_floor_that_is_not_there_cannot_be_called() -> None:
    run = Run(elevator.machine, elevator.Lift())
    run.start()
    with pytest.raises(ValueError, match="no floor 9"):
        run.signal("call", 9)
    assert run.context == elevator.Lift()


# --- tcp ----------------------------------------------------------------------------------------------------------

OPENINGS = [("active_open", "passive_open"), ("passive_open", "active_open"), ("active_open", "active_open")]


@given(opening=st.sampled_from(OPENINGS), moves=st.lists(st.integers(0, 3), max_size=30))
@settings(max_examples=100, deadline=None)
def test_two_ends_are_closed_in_whatever_order_they_close_and_segments_come(
    opening: tuple[str, str], moves: list[int]
) -> None:
    *ends, wire = tcp.connected(*opening)
    assert {end.phase.name for end in ends} == {"ESTABLISHED"}
    for move in [*moves, 2, 3]:
        if move < 2:
            wire.carry(move)
        elif "close" in ends[move - 2].possible.signals:
            ends[move - 2].signal("close")
    wire.settle()
    for end in ends:
        if end.phase.name == "TIME-WAIT":
            end.signal("2MSL_timeout")
    assert [end.phase.name for end in ends] == ["DELETED"] * 2


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_conversation_is_recorded_and_verified(interpreter: Any, tmp_path: Path) -> None:
    names = ("client", "server")
    ends = [Run(tcp.machine, tcp.Connection(), journal=JournalWriter(tmp_path / name)) for name in names]
    for end, call in zip(ends, ("active_open", "passive_open"), strict=True):
        end.start()
        end.signal(call)
    wire = tcp.Wire((ends[0], ends[1]))
    wire.settle()
    for end in ends:
        end.signal("close")
        wire.settle()
    ends[0].signal("2MSL_timeout")
    for name, end in zip(names, ends, strict=True):
        again = Run(tcp.machine, tcp.Connection(), interpreter=interpreter)
        assert verify(Journal.open(tmp_path / name), again).verified
        assert (again.phase.name, again.context) == ("DELETED", end.context)


def test_tcp_has_the_states_and_arrows_of_the_figure() -> None:
    states = {phase.name for phase in tcp.machine.phases.values()}
    assert len(states - {"DELETED"}) == 11
    assert len(tcp.machine.signals) == 21
    assert all(tcp.machine.phases[name].final is (name == "DELETED") for name in states)


# --- look-ups -----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([*look_ups.PARENTS, "Nobody"])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(NAMES, st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=8))
def test_searches_in_company_are_those_of_each_alone(coming: list[tuple[str, int, int]]) -> None:
    ensemble = Ensemble()
    runs = [Run(look_ups.machine, look_ups.Search(name)) for name, _, _ in coming]
    for turn in range(8):
        for run, (_, at, pause) in zip(runs, coming, strict=True):
            if turn == at:
                ensemble.submit(run)
            elif turn == pause and run.status is Status.RUNNING:
                run.pause()
        ensemble.turn()
    ensemble.drive()
    for run in runs:
        if run.status is Status.PAUSED:
            ensemble.submit(run)
    ensemble.drive()
    for run, (name, _, _) in zip(runs, coming, strict=True):
        alone = Run(look_ups.machine, look_ups.Search(name))
        with suppress(PhaseError):
            alone.start()
        assert (run.status, [*run.steps()], run.context) == (alone.status, [*alone.steps()], alone.context)
