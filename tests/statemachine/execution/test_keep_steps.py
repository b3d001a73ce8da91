"""A run that forgets: its memory is bounded, and what it still knows is what a run that forgets nothing knows."""

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from counting import Add, Count, enough
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from interrupting import Interrupter
from statemachine_recorded import Walk, draw
from statemachine_recorded import machine as walk

from statemachine import (
    Edit,
    End,
    IllegalMove,
    Journal,
    JournalWriter,
    Machine,
    Phase,
    PhaseError,
    Run,
    Signal,
    SnapshotError,
    Status,
    Transition,
    Wait,
    guard,
    recover,
    verify,
)
from statemachine.execution import travel
from statemachine.execution.timeline import Frame, Timeline
from statemachine.record.records import StepRecord
from statemachine.record.snapshot import load, restore

pytestmark = pytest.mark.slow


add, turn = Add(), Phase[Count, None]("turn")
ring = Machine(
    "ring", add, [Transition(add, turn, ~enough), Transition(add, End("done"), enough), Transition(turn, add)]
)


def grown(run: Run[Count], limit: int) -> int:
    """By how many bytes memory grew between the first tenth of a run and its end."""
    tracemalloc.start()
    try:
        run.until(lambda run: run.context.count >= limit // 10)
        before, _ = tracemalloc.get_traced_memory()
        run.resume()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def test_memory_of_two_million_steps_is_bounded() -> None:
    run = Run(ring, Count(limit=1_000_000), keep=True, keep_steps=1000)
    assert grown(run, 1_000_000) < 2_000_000
    assert run.step_count == 1_999_999
    assert 1000 <= len(list(run.steps())) < 20_000
    run.back(1000)
    assert run.context.count == 999_500


def test_memory_of_a_run_that_forgets_nothing_is_not() -> None:
    assert grown(Run(ring, Count(limit=200_000)), 200_000) > 10_000_000


def test_events_digests_and_ways_back_are_forgotten_too() -> None:
    run = Run(walk, Walk(limit=10**9), keep_steps=5, digest_every=1)
    for number in range(1, 600):
        run.until(lambda run, number=number: run.step_count >= 4 * number)  # type: ignore[misc]
        run.edit("bonus", amount=1)
        run.back(2)
        run.edit("bonus", amount=2)
        run.context.drawn[:-1] = []  # which would grow, too
    timeline = run.timeline
    assert timeline.count >= 2000
    assert timeline.first > 1000
    for kept in (timeline.arcs, timeline.outcomes, timeline.elapsed, timeline.events, timeline.digests, timeline.cuts):
        assert len(kept) < 1000
    assert len(timeline.frames) < 200


def test_a_run_that_is_only_answered_forgets_as_well() -> None:
    class Ask(Wait[Count, int]):
        def apply(self, context: Count, outcome: int) -> None:
            context.count += outcome

    ask = Ask()
    machine = Machine("ask", ask, [Transition(ask, ask, ~enough), Transition(ask, End("done"), enough)])
    run = Run(machine, Count(limit=10_000), keep_steps=3)
    run.start()
    for _ in range(3000):
        run.answer(1)
    assert run.step_count == 3000
    assert run.timeline.first > 1000
    run.back(3)
    assert run.context.count == 2997


class Tick(Signal[Count, int]):
    def apply(self, context: Count, payload: int) -> None:
        context.count += payload


class Set(Edit[Count, int]):
    def run(self, context: Count, *, count: int) -> int:
        return count

    def apply(self, context: Count, outcome: int) -> None:
        context.count = outcome


idle = Wait[Count, None]("idle")
clock = Machine(
    "clock", idle, [], signals=[Tick("tick", to=idle), Signal("stop", to=End("stopped"))], edits=[Set("set")]
)


@pytest.mark.parametrize("kind", ["signals", "signals that waited", "edits"])
def test_a_run_that_takes_no_steps_forgets_its_events(kind: str, tmp_path: Path) -> None:
    def move(run: Run[Count], number: int) -> None:
        if kind == "signals":
            run.signal("tick", 1)
        elif kind == "edits":
            run.edit("set", count=number + 1)
        else:
            run.wait_as_recorded([("tick", 1)])  # as one that another thread sends while it is moved

    run = Run(clock, Count(limit=1), keep_steps=10, journal=JournalWriter(tmp_path / "a.jsonl"))
    run.start()
    for number in range(2000):
        move(run, number)
    timeline = run.timeline
    assert run.context.count == timeline.event_count == 2000
    assert 10 <= len(run.events) < 1000
    assert len(timeline.frames) < 100
    fork = run.fork(journal=JournalWriter(tmp_path / "b.jsonl"))
    run.snapshot(tmp_path / "a.snapshot")
    with Run(clock, Count(limit=1)) as restored:
        assert restore(load(tmp_path / "a.snapshot"), restored) is None
        assert (restored.context, restored.events) == (run.context, run.events)
    run.goto(0)  # where it rests: nothing happened after
    assert run.context.count == 2000
    for one, path in ((run, "a"), (fork, "b")):
        one.signal("tick", 5)
        one.signal("stop")
        again = Run(clock, Count(limit=1))
        assert verify(Journal.open(tmp_path / f"{path}.jsonl"), again).verified
        assert again.context.count == one.context.count == 2005


def test_no_way_leads_back_to_between_events_that_are_forgotten() -> None:
    run, whole = Run(walk, Walk(seed=3, limit=400), keep_steps=2), Run(walk, Walk(seed=3, limit=400))
    for one in (run, whole):
        one.until(lambda run: run.step_count == 3)
        for _ in range(500):
            one.edit("bonus", amount=1)
    assert run.timeline.first == 3
    run.goto(3)
    assert run.step() == whole.step()
    assert run.context == whole.context
    with pytest.raises(IllegalMove, match="there is no place 3; what was before step 4 was not kept"):
        run.goto(3)
    with pytest.raises(IllegalMove, match="there is no place 3;"):
        run.fork(3)
    assert run.goto(4) is None
    assert [step.number for step in run.steps()] == [3]


def test_nothing_less_than_one_step_can_be_kept() -> None:
    with pytest.raises(ValueError, match="at least 1, or None for all, not 0"):
        Run(walk, Walk(), keep_steps=0)


def forgetful(path: Path, keep_steps: int = 2, **options: Any) -> Run[Walk]:
    """A run that has forgotten some of its past; its journal is written at each step."""
    run = Run(
        walk, Walk(seed=3, limit=400), journal=JournalWriter(path, every="step"), keep_steps=keep_steps, **options
    )
    run.until(lambda run: run.timeline.first > 50)
    return run


def test_what_was_forgotten_is_refused_and_the_journal_has_it_all(tmp_path: Path) -> None:
    run = forgetful(tmp_path / "a.jsonl", keep=True)
    first = run.timeline.first
    with pytest.raises(IllegalMove, match=f"there is no place 3; what was before step {first} was not kept"):
        run.goto(3)
    with pytest.raises(IllegalMove, match="no place 3;"):
        run.fork(3)
    steps = run.steps()
    next(steps)
    run.resume()
    with pytest.raises(IllegalMove, match=r"there is no step \d+ any more; what was before step"):
        next(steps)
    journal = Journal.open(tmp_path / "a.jsonl")
    assert [record.n for record in journal.records() if isinstance(record, StepRecord)] == list(range(run.step_count))
    again = Run(walk, Walk(seed=3, limit=400))
    assert verify(journal, again).verified
    assert again.context == run.context
    forgetting = Run(walk, Walk(seed=3, limit=400), keep_steps=4)
    assert verify(journal, forgetting).verified
    assert forgetting.timeline.first > 0


@pytest.mark.parametrize("history", [True, False])
def test_it_is_saved_and_restored_with_what_it_still_knows(tmp_path: Path, history: bool) -> None:
    run = forgetful(tmp_path / "a.jsonl", digest_every=3)
    run.edit("bonus", amount=5)
    run.snapshot(tmp_path / "a.snapshot", history=history)
    other = Run(walk, Walk(seed=3, limit=400), journal=JournalWriter(tmp_path / "b.jsonl"))
    assert restore(load(tmp_path / "a.snapshot"), other) is None
    assert (other.context, other.step_count) == (run.context, run.step_count)
    if history:
        assert list(other.steps()) == list(run.steps())
        assert other.events == run.events
    assert other.resume() is run.resume() is Status.DONE
    assert other.context == run.context
    for begun in (Walk(seed=3, limit=400), Walk(seed=4, limit=400)):
        verdict = verify(Journal.open(tmp_path / "b.jsonl"), Run(walk, begun))
        assert verdict.verified == (begun.seed == 3)


def test_a_fork_of_it_has_a_record_that_verifies_digests_and_all(tmp_path: Path) -> None:
    run = forgetful(tmp_path / "a.jsonl", keep_steps=3, digest_every=3)
    fork = run.fork(run.step_count - 1, journal=JournalWriter(tmp_path / "b.jsonl"))
    fork.edit("bonus", amount=1)
    fork.resume()
    run.resume()
    assert fork.context != run.context
    for name in "ab":
        assert verify(Journal.open(tmp_path / f"{name}.jsonl"), Run(walk, Walk(seed=3, limit=400))).verified


def test_a_journal_is_gone_on_with_by_a_run_that_forgets(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = forgetful(path)
    run.edit("bonus", amount=1)
    run.back(1)
    run.edit("bonus", amount=2)
    run.until(lambda run: run.step_count > 200)
    run.close()
    again = Run(walk, Walk(seed=3, limit=400), keep_steps=2)
    assert recover(path, again, every="step") is None
    assert again.timeline.first > 50
    again.edit("bonus", amount=3)
    again.back(1)
    again.edit("bonus", amount=4)
    assert again.resume() is Status.DONE
    verified = Run(walk, Walk(seed=3, limit=400))
    assert verify(Journal.open(path), verified).verified
    assert verified.context == again.context
    assert [happened.outcome for happened in verified.events] == [2, 4]


def test_a_context_that_json_cannot_hold_is_not_saved_without_its_past(tmp_path: Path) -> None:
    @dataclass
    class Odd:
        seen: Any
        count: int = 0

    class Look(Phase[Odd, int]):
        def apply(self, context: Odd, outcome: int) -> None:
            context.count = outcome

        def run(self, context: Odd) -> int:
            return context.count + 1

    look = Look()
    far = guard(lambda context: context.count >= 500)
    far.name = "far"
    machine = Machine("odd", look, [Transition(look, look, ~far), Transition(look, End("done"), far)])
    run = Run(machine, Odd({1, 2}), journal=JournalWriter(tmp_path / "a.jsonl", every="step"), keep_steps=1)
    run.until(lambda run: run.timeline.first > 0)
    with pytest.raises(
        SnapshotError, match=r"cannot be saved without what was before step \d+, which was not kept: JSON"
    ):
        run.snapshot(tmp_path / "a.snapshot")
    assert not (tmp_path / "a.snapshot").exists()


class Pair:
    """A run that forgets, and one that does not, moved alike."""

    def __init__(self, folder: Path, seed: int, keep_steps: int, digest_every: int) -> None:
        options = {"keep": True, "digest_every": digest_every}
        self.path = folder / "a.jsonl"
        self.begun = (seed, 60)
        self.run = Run(walk, Walk(*self.begun), journal=JournalWriter(self.path, every="step"), keep_steps=keep_steps,
                       **options)  # type: ignore[arg-type]  # fmt: skip
        self.whole = Run(walk, Walk(*self.begun), **options)  # type: ignore[arg-type]

    @property
    def first_place(self) -> int:
        """Where both can go back to."""
        timeline = self.run.timeline
        return timeline.first + (timeline.origin is not None and timeline.origin.amid)

    def both(self, move: Any) -> None:
        found = []
        for run in (self.run, self.whole):
            try:
                found.append(move(run))
            except (IllegalMove, PhaseError, ValueError) as refused:
                found.append(type(refused))
        assert found[0] == found[1]

    def compare(self) -> None:
        run, whole, first = self.run, self.whole, self.run.timeline.first
        assert (run.status, run.phase, run.step_count) == (whole.status, whole.phase, whole.step_count)
        assert run.context == whole.context
        assert list(run.steps(future=True)) == list(whole.steps(first, future=True))
        assert run.events == whole.events[len(whole.events) - len(run.events) :]
        assert all(happened.number <= first for happened in whole.events[: len(whole.events) - len(run.events)])
        assert run.timeline.digests == {n: d for n, d in whole.timeline.digests.items() if n >= first}


MOVES = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 30)),
    st.tuples(st.just("back"), st.integers(0, 12)),
    st.tuples(st.just("goto"), st.integers(0, 12)),
    st.tuples(st.just("edit"), st.integers(0, 9)),
    st.tuples(st.just("skip"), st.none()),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(moves=[("skip", None), ("edit", 1), ("step", 1), ("step", 1)], seed=0, keep_steps=1, digest_every=0)
@given(
    moves=st.lists(MOVES, min_size=5, max_size=30), seed=st.integers(0, 9), keep_steps=st.sampled_from([1, 2, 5, 20]),
    digest_every=st.integers(0, 3),
)  # fmt: skip
def test_it_agrees_with_a_run_that_forgets_nothing_in_all_that_it_keeps(
    moves: list[Any], seed: int, keep_steps: int, digest_every: int
) -> None:
    with TemporaryDirectory() as folder:
        pair = Pair(Path(folder), seed, keep_steps, digest_every)
        for move, value in moves:
            first, count = pair.first_place, pair.run.recorded_steps
            place = {"back": pair.run.step_count - (value or 0), "goto": first + (value or 0)}.get(move)
            if move == "step":
                there = pair.run.step_count + value
                pair.both(lambda run, there=there: run.until(lambda run: run.step_count >= there))  # type: ignore[misc]
            elif place is not None and first <= place <= count:
                pair.both(lambda run, place=place: run.goto(place))  # type: ignore[misc]
            elif move == "edit":
                pair.both(lambda run, value=value: run.edit("bonus", amount=value))  # type: ignore[misc]
            elif move == "skip":
                pair.both(lambda run: run.signal("skip"))
            pair.compare()
        for place in range(pair.first_place, pair.run.recorded_steps + 1):
            pair.both(lambda run, place=place: run.goto(place))  # type: ignore[misc]
            pair.compare()
        event("forgot" if pair.run.timeline.first else "forgot nothing")
        again = Run(walk, Walk(*pair.begun))
        if pair.path.stat().st_size:
            assert verify(Journal.open(pair.path), again).divergence is None
            assert list(again.steps()) == list(pair.whole.steps(future=True))
        pair.run.close()


def remembered(timeline: Timeline[Walk]) -> tuple[Any, ...]:
    return (timeline.origin, timeline.count, timeline.arcs, timeline.outcomes, list(timeline.elapsed), timeline.events,
            timeline.digests, timeline.frames, timeline.cuts, timeline.event_count, timeline.cut_count,
            timeline.digestible())  # fmt: skip


@pytest.mark.parametrize("more", [0, 1, 3])
def test_a_timeline_forgets_all_of_a_stretch_or_nothing(more: int) -> None:
    def long() -> Timeline[Walk]:
        run = Run(walk, Walk(seed=3, limit=20), keep=True, digest_every=2)
        run.start()
        run.goto(9)
        run.edit("bonus", amount=1)
        run.until(lambda run: run.step_count == 14)
        run.edit("bonus", amount=1)
        timeline = run.timeline
        timeline.frames = [Frame(3, 0, {}), Frame(8, 0, {}), Frame(12, 0, {}, events=1)]
        timeline.elapsed = list(range(timeline.count))
        return timeline

    nothing, all_of_it = remembered(long()), long()
    all_of_it.forget(3)  # two steps and an event
    assert (all_of_it.first, all_of_it.count, len(all_of_it.arcs), len(all_of_it.events)) == (12, 14, 2, 1)
    assert (all_of_it.event_count, all_of_it.cut_count) == (2, 1)
    assert all_of_it.digestible() == nothing[-1]
    assert all_of_it.step(12).outcome == nothing[3][12]
    found, at = [], 0
    while True:
        timeline = long()
        interrupter = Interrupter(at, more)
        try:
            with interrupter:
                timeline.forget(3)
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        timeline.mend()
        assert timeline.whole
        found.append(remembered(timeline))
        at += 1
    assert all(each in (nothing, remembered(all_of_it)) for each in found)
    assert nothing in found
    assert remembered(all_of_it) in found


def test_a_context_that_is_slow_to_copy_is_forgotten_as_well() -> None:
    timeline: Timeline[Walk] = Timeline(walk, walk.program(), Frame(0, 0, {}), spacing=10, widest=10)
    arc, longest = walk.program().rows[0].arcs[0], 0
    for _ in range(2000):
        timeline.arcs.append(arc)
        timeline.outcomes.append(0)
        timeline.elapsed.append(0)
        if timeline.wants_frame:
            timeline.keep(Frame(timeline.count, 0, {}, 600_000_000))
        if timeline.count - timeline.first >= 20:
            timeline.forget(10)
        longest = max(longest, timeline.count - timeline.first)
    assert longest < 40


@pytest.mark.parametrize("second", [0, 3], ids=["once", "four times"])
def test_an_interrupt_while_it_forgets_leaves_a_run_that_goes_on_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: int
) -> None:
    monkeypatch.setattr(travel, "FRAMES_PART", 0)  # a frame whenever there can be one, however slow the machine is
    whole = Run(walk, Walk(seed=3, limit=6), keep=True)
    whole.start()
    places = {}
    for number in range(whole.step_count + 1):
        whole.goto(number)
        places[number] = (whole.phase, list(whole.context.drawn), whole.context.bonus)
    at = forgot = 0
    while True:
        path = tmp_path / f"{at}.jsonl"
        run = Run(walk, Walk(seed=3, limit=6), journal=JournalWriter(path, every="step"), keep=True, keep_steps=1)
        run.until(lambda run: run.step_count >= 4)
        interrupter, first = Interrupter(at, second), run.timeline.first
        try:
            with interrupter:
                run.until(draw)
        except KeyboardInterrupt:
            pass
        if not interrupter.fired:
            break
        run.wait(1)
        run.goto(run.step_count)  # any move mends what was left
        forgot += run.timeline.first > first
        assert run.timeline.whole
        assert list(run.steps()) == list(whole.steps(run.timeline.first))[: len(list(run.steps()))]
        for number in range(run.timeline.first, run.recorded_steps + 1):
            run.goto(number)
            assert (run.phase, run.context.drawn, run.context.bonus) == places[number]
        run.resume()
        assert run.context == whole.context
        assert verify(Journal.open(path), Run(walk, Walk(seed=3, limit=6))).divergence is None
        at += 1
    assert at > 50
    assert forgot
