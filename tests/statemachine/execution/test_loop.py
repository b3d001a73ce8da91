"""The loop alone: what it records, when it looks up, and where it rests."""

from typing import Any

import pytest
from counting import Add, Count, enough

from statemachine import End, Machine, Raised, Transition
from statemachine.definition.program import Arc
from statemachine.execution.loop import Cursor, drive
from statemachine.execution.timeline import Timeline

add = Add()
machine = Machine("count", add, [Transition(add, add, ~enough), Transition(add, End("done"), enough)])


class Heard:
    """What the loop calls, noted."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.heeded = self.tended = 0
        self.rest = False
        self.due_in = 2**62
        self.accepted: list[Any] = []

    def heed(self) -> bool:
        self.heeded += 1
        self.cursor.attention = False
        return self.rest

    def tend(self, now: int) -> None:
        self.tended += 1
        self.cursor.due = now + self.due_in


def driven(context: Count, **options: Any) -> tuple[Timeline[Count], Heard, Cursor]:
    program = machine.program()
    cursor = Cursor(program.index_of("add"), **{k: options.pop(k) for k in ("attention", "due") if k in options})
    timeline: Timeline[Count] = Timeline(machine, program)
    heard = Heard(cursor)
    heard.rest, heard.due_in = options.pop("rest", False), options.pop("due_in", 2**62)
    drive(
        cursor, program.rows, context, timeline, heed=heard.heed, tend=heard.tend, catch=lambda error: None, **options
    )
    return timeline, heard, cursor


def test_it_records_every_step_up_to_the_end() -> None:
    timeline, heard, cursor = driven(context := Count())
    assert (context.count, timeline.count, timeline.outcomes) == (5, 5, [1, 2, 3, 4, 5])
    assert timeline.whole
    assert all(time >= 0 for time in timeline.elapsed)
    assert machine.program().phases[cursor.index].name == "done"
    assert (heard.heeded, heard.tended) == (0, 1)


def test_it_rests_when_what_asks_for_attention_says_so_before_a_step() -> None:
    timeline, heard, _ = driven(Count(), attention=True, rest=True)
    assert (timeline.count, heard.heeded) == (0, 1)
    timeline, heard, _ = driven(Count(), attention=True, rest=False)
    assert (timeline.count, heard.heeded) == (5, 1)


def test_it_rests_after_a_step_that_stop_likes() -> None:
    context = Count()
    timeline, _, _ = driven(context, stop=lambda: context.count == 3)
    assert timeline.count == 3


def test_it_tends_after_every_step_when_that_is_always_due() -> None:
    _, heard, _ = driven(Count(), due_in=0)
    assert heard.tended == 5


def test_an_outcome_that_is_not_accepted_changes_nothing() -> None:
    def accept(outcome: int) -> None:
        if outcome == 3:
            raise ValueError("not three")

    context, program = Count(), machine.program()
    timeline: Timeline[Count] = Timeline(machine, program)
    cursor = Cursor(0)
    with pytest.raises(ValueError, match="not three"):
        drive(
            cursor, program.rows, context, timeline, heed=lambda: False, tend=lambda now: None,
            catch=lambda error: None, accept=accept,
        )  # fmt: skip
    assert (context.count, timeline.count) == (2, 2)


def test_what_is_caught_is_recorded_and_what_is_not_is_raised() -> None:
    class Fails(Add):
        def run(self, context: Count) -> int:
            if context.count == 3:
                raise KeyError("three")
            if context.count == 5:
                raise ValueError("five")
            return super().run(context)

    fails = Fails("add")
    failing = Machine("count", fails, [Transition(fails, fails, ~enough), Transition(fails, End("done"), enough),
                                       Transition(fails, fails, raises=KeyError)])  # fmt: skip
    context, program = Count(limit=9), failing.program()
    timeline: Timeline[Count] = Timeline(failing, program)

    def catch(error: Exception) -> tuple[Arc, Raised] | None:
        if not isinstance(error, KeyError):
            return None
        context.count = 4
        raised = Raised.of("KeyError", error)
        return program.step(0, context, raised, "KeyError"), raised

    with pytest.raises(ValueError, match="five"):
        drive(Cursor(0), program.rows, context, timeline, heed=lambda: False, tend=lambda now: None, catch=catch)
    assert timeline.outcomes == [1, 2, 3, Raised("KeyError", "KeyError", "'three'"), 5]
    assert [arc.transition for arc in timeline.arcs] == [0, 0, 0, 2, 0]
