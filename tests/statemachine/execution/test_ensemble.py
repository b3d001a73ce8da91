"""Runs driven together: what is shared is the work of phases, and nothing else; each has the record of a run alone."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import Interrupter

from statemachine import (
    End,
    Ensemble,
    Failed,
    IllegalMove,
    Journal,
    JournalWriter,
    Machine,
    Phase,
    PhaseError,
    Raised,
    Run,
    Signal,
    Status,
    Transition,
    guard,
    verify,
)  # fmt: skip
from statemachine.testing.machines import Counter, Plan, Work, plans


class Shared(Work):
    """Works for several at once, and now and then for the first ones only."""

    def run_many(self, contexts: Sequence[Counter]) -> Sequence[int | Failed | None]:
        most = max(1, len(contexts) - len(contexts) % 3)
        return list(Phase.run_many(self, contexts[:most]))


@st.composite
def shared_machines(draw: st.DrawFn) -> Machine[Counter]:
    """Random machines some of whose phases are shared."""
    plan: Plan = draw(plans())
    kinds = [Shared if kind is Work and draw(st.booleans()) else kind for kind in plan.kinds]
    return replace(plan, kinds=kinds).build()


def past(run: Run[Counter]) -> tuple[Any, ...]:
    timeline = run.timeline
    events = [(event.number, event.kind, event.name, event.outcome) for event in run.events]
    return timeline.arcs, timeline.outcomes, events, run.status, run.context


@settings(max_examples=80, deadline=None)
@given(
    shared_machines(), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 6)), min_size=1, max_size=7),
)  # fmt: skip
def test_each_has_the_past_that_it_would_have_alone(machine: Machine[Counter], coming: list[tuple[int, int]]) -> None:
    together = Ensemble()
    runs = [Run(machine, Counter(salt)) for salt, _ in coming]
    until = [until_steps(run, 40) for run in runs]
    left = sorted(zip([turn for _, turn in coming], range(len(runs)), strict=True))
    futures = {}
    for turn in range(200):
        while left and left[0][0] <= turn:
            which = left.pop(0)[1]
            futures[which] = together.submit(runs[which], until[which])
        if not together.turn() and not left:
            break
    for which, (salt, _) in enumerate(coming):
        alone = Run(machine, Counter(salt))
        error: BaseException | None = None
        try:
            until_steps(alone, 40)()
        except PhaseError as failed:
            error = failed
        assert past(runs[which]) == past(alone)
        assert repr(futures[which].exception(0)).replace(runs[which].id, "") == repr(error).replace(alone.id, "")


def until_steps(run: Run[Counter], most: int) -> Any:
    return lambda: run.until(lambda run: run.step_count >= most)


@settings(max_examples=25, deadline=None)
@given(shared_machines(), st.data())
def test_records_made_in_company_verify_alone(
    tmp_path_factory: pytest.TempPathFactory, machine: Machine[Counter], data: st.DataObject
) -> None:
    folder: Path = tmp_path_factory.mktemp("records")
    together, runs = Ensemble(), list[Run[Counter]]()
    for number in range(data.draw(st.integers(1, 5))):
        runs.append(Run(machine, Counter(number), journal=JournalWriter(folder / f"{number}.jsonl")))
        together.submit(runs[-1], until_steps(runs[-1], 30))
    for _ in range(12):
        together.turn()
        run = data.draw(st.sampled_from(runs))
        verb = data.draw(st.sampled_from(("nothing", "cancel", "count", "pause", "go on")))
        try:
            if verb in ("cancel", "count"):
                run.signal(verb, 3 if verb == "count" else None)
            elif verb == "pause":
                run.pause()
            elif verb == "go on" and run.status in (Status.PAUSED, Status.FAILED):
                together.submit(run, until_steps(run, 30))
        except IllegalMove:
            pass
    together.drive()
    for number, run in enumerate(runs):
        run.close()
        verdict = verify(Journal.open(folder / f"{number}.jsonl"), Run(machine, Counter(number)))
        assert verdict.divergence is None
        assert verdict.steps == run.step_count


# --- a machine whose shared phase counts its calls -------------------------------------------------------------------


@dataclass
class Asked:
    number: int
    found: list[int] = field(default_factory=list)


class LookUp(Phase[Asked, int]):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def run(self, context: Asked) -> int:
        if context.number < 0:
            raise LookupError(f"there is no {context.number}")
        return context.number * 10

    def run_many(self, contexts: Sequence[Asked]) -> Sequence[int | Failed | None]:
        self.calls.append([context.number for context in contexts])
        return super().run_many(contexts)

    def apply(self, context: Asked, outcome: int) -> None:
        context.found.append(outcome)


class Think(Phase[Asked, None]):
    pass


@guard
def enough(context: Asked) -> bool:
    return len(context.found) >= context.number


def asking(look_up: Phase[Asked, int] | None = None) -> Machine[Asked]:
    first, think, done = look_up or LookUp(), Think(), End[Asked]("done")
    stopped: End[Asked] = End("stopped", status=Status.CANCELLED)
    return Machine(
        "asking", start=first,
        transitions=[
            Transition(first, think), Transition(think, done, when=enough), Transition(think, first, when=~enough),
        ],
        signals=[Signal("stop", to=stopped)],
    )  # fmt: skip


def test_those_that_stand_at_a_phase_share_one_call() -> None:
    look_up = LookUp()
    together, machine = Ensemble(), asking(look_up)
    for number in (1, 2, 3):
        together.submit(Run(machine, Asked(number)))
    together.drive()
    assert look_up.calls == [[1, 2, 3], [2, 3], [3]]


def test_machines_that_have_a_phase_in_common_share_it() -> None:
    look_up = LookUp()
    together = Ensemble()
    for number in (1, 2):
        together.submit(Run(asking(look_up), Asked(number)))
    together.drive()
    assert look_up.calls == [[1, 2], [2]]


def test_who_fails_fails_alone_and_can_go_on() -> None:
    look_up = LookUp()
    machine, together = asking(look_up), Ensemble()
    good, bad = Run(machine, Asked(2)), Run(machine, Asked(-1))
    fine, failed = together.submit(good), together.submit(bad)
    together.drive()
    assert fine.result(0) is Status.DONE
    error = failed.exception(0)
    assert isinstance(error, PhaseError)
    assert isinstance(error.__cause__, LookupError)
    assert bad.status is Status.FAILED
    bad.context.number = 1
    again = together.submit(bad)
    together.drive()
    assert again.result(0) is Status.DONE


def test_what_the_shared_work_raises_reaches_all_and_takes_the_way_of_the_table() -> None:
    class Broken(LookUp):
        def run_many(self, contexts: Sequence[Asked]) -> Sequence[int | Failed | None]:
            raise ConnectionError("the base is away")

        def apply_error(self, context: Asked, raised: Raised) -> None:
            context.found.append(-1)

    broken, done, sorry = Broken(), End[Asked]("done"), End[Asked]("sorry")
    machine = Machine(
        "asking", start=broken,
        transitions=[Transition(broken, done), Transition(broken, sorry, raises=ConnectionError)],
    )  # fmt: skip
    together, runs = Ensemble(), [Run(machine, Asked(n)) for n in range(3)]
    for run in runs:
        together.submit(run)
    together.drive()
    assert [run.phase.name for run in runs] == ["sorry"] * 3
    assert [run.context.found for run in runs] == [[-1]] * 3


@pytest.mark.parametrize("count", [0, 3])
def test_a_wrong_number_of_outcomes_is_told(count: int) -> None:
    class Odd(LookUp):
        def run_many(self, contexts: Sequence[Asked]) -> Sequence[int | Failed | None]:
            return [1] * count

    together = Ensemble()
    futures = [together.submit(Run(asking(Odd()), Asked(1))) for _ in range(2)]
    machine = asking(Odd())
    futures = [together.submit(Run(machine, Asked(1))) for _ in range(2)]
    together.drive()
    for future in futures:
        assert f"gave {count} outcomes for 2 runs: expected 1 to 2" in str(future.exception(0))


def test_the_first_ones_may_have_their_turn_first() -> None:
    class Few(LookUp):
        def run_many(self, contexts: Sequence[Asked]) -> Sequence[int | Failed | None]:
            return super().run_many(contexts[:2])

    few = Few()
    machine, together = asking(few), Ensemble()
    for _ in range(5):
        together.submit(Run(machine, Asked(1)))
    together.turn()
    assert len(together) == 3
    together.drive()
    assert [len(call) for call in few.calls] == [2, 2, 1]


def test_others_pause_and_signal_at_the_next_boundary() -> None:
    machine, together = asking(), Ensemble()
    paused, stopped, other = (Run(machine, Asked(5)) for _ in range(3))
    futures = [together.submit(run) for run in (paused, stopped, other)]
    together.turn()
    assert {run.status for run in (paused, stopped, other)} == {Status.RUNNING}
    with pytest.raises(IllegalMove, match="being driven"):
        paused.step()
    paused.pause()
    stopped.signal("stop")
    together.drive()
    assert [future.result(0) for future in futures] == [Status.PAUSED, Status.CANCELLED, Status.DONE]
    assert paused.step_count < other.step_count
    paused.resume()  # alone
    assert paused.context.found == other.context.found


def test_work_may_be_any_loop_over_a_run() -> None:
    machine, together = asking(), Ensemble()
    run, seen = Run(machine, Asked(2)), list[str]()

    def watch() -> int:
        for step in run:
            seen.append(step.phase)
            if len(seen) == 2:
                run.back(1)
        return len(run.context.found)

    future = together.submit(run, watch)
    together.submit(Run(machine, Asked(3)))
    together.drive()
    assert future.result(0) == 2
    assert seen == ["look_up", "think", "think", "look_up", "think"]


def test_any_thread_submits_and_waits_while_one_serves() -> None:
    look_up = LookUp()
    machine, together = asking(look_up), Ensemble()
    server = threading.Thread(target=together.serve)
    server.start()
    results = list[Any]()

    def ask(number: int) -> None:
        results.append(together.submit(Run(machine, Asked(number))).result(30))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    together.close()
    server.join(30)
    assert not server.is_alive()
    assert results == [Status.DONE] * 8
    with pytest.raises(IllegalMove, match="closed"):
        together.submit(Run(machine, Asked(1)))


def test_one_thread_drives_and_none_while_another_left_runs_in_it() -> None:
    together = Ensemble()
    future = together.submit(Run(asking(), Asked(3)))
    thread = threading.Thread(target=together.turn)
    thread.start()
    thread.join(30)
    with pytest.raises(IllegalMove, match="another thread"):
        together.turn()
    assert not future.done()


def test_what_was_cancelled_before_it_came_in_never_runs() -> None:
    together, run = Ensemble(), Run(asking(), Asked(1))
    assert together.submit(run).cancel()
    together.drive()
    assert run.status is Status.READY


def test_a_phase_that_others_do_not_share_is_run_alone_and_a_run_alone_needs_no_company() -> None:
    look_up = LookUp()
    assert Run(asking(look_up), Asked(2)).start() is Status.DONE
    assert look_up.calls == []


def test_an_interrupt_anywhere_leaves_every_run_so_that_it_can_go_on() -> None:
    at, machine = 0, asking()
    while True:
        together, runs = Ensemble(), [Run(machine, Asked(n)) for n in (1, 2, 3)]
        futures = [together.submit(run) for run in runs]
        with Interrupter(at) as interrupter, suppress(KeyboardInterrupt):
            together.drive()
        together.drive()  # who had not come in yet
        assert all(future.done() for future in futures), at
        for run in runs:
            assert run.status is not Status.RUNNING, at
            again = Ensemble()
            if run.status in (Status.READY, Status.PAUSED, Status.FAILED):
                again.submit(run)
                again.drive()
            assert run.status is Status.DONE, (at, run.status)
            assert run.context.found == [run.context.number * 10] * run.context.number
        if not interrupter.fired:
            break
        at += 1
    assert at > 100
