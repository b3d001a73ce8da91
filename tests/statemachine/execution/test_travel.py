"""Time travel works out what was, aside, and never folds more than a short stretch."""

import time
from array import array
from dataclasses import dataclass, field, replace

import pytest

from statemachine import Edit, End, Guard, IllegalMove, Machine, Phase, Run, Signal, Status, Transition, guard
from statemachine.execution.timeline import MOST_FRAMES, Event, Frame, Timeline
from statemachine.execution.travel import state_at


@dataclass(slots=True)
class Sum:
    limit: int
    count: int = 0
    extra: list[int] = field(default_factory=list)


class Add(Phase[Sum, int]):
    def run(self, context: Sum) -> int:
        return context.count + 1

    def apply(self, context: Sum, outcome: int) -> None:
        context.count = outcome


class More(Edit[Sum, int]):
    def run(self, context: Sum, *, what: int = 1) -> int:
        return what

    def apply(self, context: Sum, outcome: int) -> None:
        context.extra.append(outcome)


@guard
def enough(context: Sum) -> bool:
    return context.count >= context.limit


add = Add()
machine = Machine(
    "sum", start=add, transitions=[Transition(add, add, ~enough), Transition(add, End("end"), enough)],
    signals=[Signal("again", to=add)], edits=[More("more")],
)  # fmt: skip


def test_a_state_is_worked_out_aside() -> None:
    run = Run(machine, Sum(limit=50))
    run.until(lambda run: run.step_count == 20)
    run.edit("more", what=7)
    run.until(lambda run: run.step_count == 30)
    scratch, index = state_at(run.timeline, run.context, 20, run.timeline.events_before(21))
    assert (scratch.count, scratch.extra, index) == (20, [7], 0)
    scratch, _ = state_at(run.timeline, run.context, 20, [])
    assert (scratch.count, scratch.extra) == (20, [])
    assert (run.context.count, run.context.extra) == (30, [7])


def test_going_back_costs_little_at_a_million_steps() -> None:
    """Counted in calls of `apply`, not in seconds: at most the stretch from the last frame."""
    applied = [0]

    class Counted(Add):
        def apply(self, context: Sum, outcome: int) -> None:
            applied[0] += 1
            context.count = outcome

    counted = Counted("add")
    long = Machine(
        "long",
        start=counted,
        transitions=[Transition(counted, counted, ~enough), Transition(counted, End("e"), enough)],
    )
    run = Run(long, Sum(limit=1_000_000), keep=True)
    run.start()
    frames = run.timeline.frames
    assert 100 < len(frames) <= MOST_FRAMES
    for number in (999_999, 999_000, 500_000, 3, 0, 1_000_000):
        applied[0] = 0
        began = time.perf_counter()
        run.goto(number)
        assert run.context.count == number
        assert applied[0] <= 16_384  # about 3 ms
        print(f"to {number}: {applied[0]} calls of apply, {(time.perf_counter() - began) * 1e3:.2f} ms")


def test_what_waits_while_a_run_rests_in_its_past_keeps_no_frame_of_it() -> None:
    go = Guard[Sum]("go", lambda context: context.count >= 900)
    waiting = replace(machine, signals=[Signal("halt", to=End("halted"), when=go)])
    run = Run(waiting, Sum(limit=1000), keep=True)
    run.until(lambda run: run.step_count == 600)
    run.timeline.spacing = 100  # so that it is time for one
    run.signal("halt", wait=True)
    time.sleep(0.05)  # and that the run looks up
    run.goto(100)
    run.goto(600)
    assert all(frame.fields["count"] == frame.number for frame in run.timeline.frames)
    assert run.resume() is Status.DONE
    assert run.step_count == 900
    run.goto(700)
    assert run.context.count == 700


def test_frames_agree_with_a_fold_from_the_origin() -> None:
    run = Run(machine, Sum(limit=20_000), keep=True)
    run.until(lambda run: run.step_count == 5000)
    run.edit("more", what=3)
    run.start() if run.status is Status.READY else run.resume()
    assert run.timeline.frames
    for number in (4999, 5000, 5001, 12_345, 20_000):
        run.goto(number)
        with_frames = (run.context.count, list(run.context.extra), run.phase.name)
        kept, run.timeline.frames = run.timeline.frames, []
        run.goto(number)
        assert (run.context.count, list(run.context.extra), run.phase.name) == with_frames
        run.timeline.frames = kept


def test_frames_thin_out_when_they_are_many() -> None:
    timeline: Timeline[Sum] = Timeline(machine, machine.program(), Frame(0, 0, {}))
    for number in range(1, 5000):
        if number * 2048 >= (timeline.frames[-1].number if timeline.frames else 0) + timeline.spacing:
            timeline.keep(Frame(number * 2048, 0, {}, 1000))
    assert len(timeline.frames) <= MOST_FRAMES
    assert timeline.spacing == 2048 * 16
    assert [frame.number for frame in timeline.frames] == sorted(frame.number for frame in timeline.frames)
    assert timeline.frame_before(2048 * 4000 + 1, 0).number <= 2048 * 4000 + 1
    heavy: Timeline[Sum] = Timeline(machine, machine.program(), Frame(0, 0, {}))
    for number in range(1, 10):
        heavy.keep(Frame(number * 2048, 0, {}, 100_000_000))
    assert len(heavy.frames) <= 5


def test_a_cut_that_was_interrupted_is_finished() -> None:
    timeline: Timeline[Sum] = Timeline(machine, machine.program(), Frame(0, 0, {}))
    arc = machine.program().rows[0].arcs[0]
    timeline.arcs, timeline.outcomes, timeline.elapsed = [arc] * 9, list(range(9)), list(range(9))
    timeline.events = [Event(2, "signal", "again"), Event(5, "signal", "again")]
    timeline.rewound = 4
    timeline._cutting = 4, 0, [timeline.events[0], Event(4, "edit", "more", 1)]
    del timeline.elapsed[4:]  # and then the interrupt came
    assert not timeline.whole
    for _ in range(2):
        timeline.mend()
        assert timeline.whole
        assert (timeline.count, timeline.here, timeline.cuts) == (4, 4, [4])
        assert [event.number for event in timeline.events] == [2, 4]


def test_a_place_that_is_not_there_is_refused() -> None:
    run = Run(machine, Sum(limit=9))
    run.step()
    for number in (-1, 2):
        with pytest.raises(IllegalMove, match=f"has 1 recorded steps; there is no place {number}"):
            run.goto(number)
    with pytest.raises(IllegalMove, match="there is no place -4"):
        run.back(5)


def test_a_run_that_began_without_a_past_cannot_go_beyond_it() -> None:
    run = Run(machine, Sum(limit=200))
    run.begin_at(150, "add", {"limit": 200, "count": 150, "extra": [1]})
    assert (run.status, run.step_count, run.context.count) == (Status.PAUSED, 150, 150)
    run.until(lambda run: run.step_count == 160)
    run.goto(150)
    assert run.context.count == 150
    with pytest.raises(IllegalMove, match="no place 149; what was before step 150 was not kept"):
        run.back()
    run.resume()
    assert (run.step_count, [step.number for step in run.steps()][:2]) == (200, [150, 151])


def test_a_context_that_can_no_longer_be_copied_still_runs() -> None:
    class Odd(Phase[Sum, int]):
        def run(self, context: Sum) -> int:
            return context.count + 1

        def apply(self, context: Sum, outcome: int) -> None:
            context.count = outcome
            context.extra = array if outcome > 10 else []  # a module's type: deepcopy shares it; a lock it cannot

    odd = Odd("add")
    long = Machine("odd", start=odd, transitions=[Transition(odd, odd, ~enough), Transition(odd, End("e"), enough)])
    run = Run(long, Sum(limit=10_000), keep=True)
    assert run.start() is Status.DONE
    run.goto(5)
    assert run.context.extra == []
