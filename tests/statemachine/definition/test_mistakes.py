"""What is of the wrong type in a table is told as a finding, all of it at once, and nothing is run."""

from typing import Any

import pytest

from statemachine import Choice, End, Guard, InvalidMachine, Machine, Phase, Signal, Transition, Wait, guard

end: End[Any] = End("end")


class Draw(Phase[Any, int]):
    pass


draw = Draw()
mood: Choice[Any] = Choice("mood", ("good", "bad"), lambda context: "good")


def often(context: object) -> bool:
    return True


def found(start: Any, *transitions: Any, signals: Any = (), edits: Any = ()) -> list[str]:
    with pytest.raises(InvalidMachine) as refused:
        Machine("wrong", start=start, transitions=transitions, signals=signals, edits=edits)
    return [str(finding) for finding in refused.value.findings]


@pytest.mark.parametrize(
    ("start", "row", "expected"),
    [
        ("draw", Transition(draw, end), "the start is 'draw', expected a Phase"),
        (Draw, Transition(draw, end), "the start is the class Draw, expected a Phase"),
        (draw, (draw, end), "a row of the table is (<phase draw>, <phase end>), expected a Transition"),
        (draw, Transition(Draw, end), "the source of a transition from the class Draw to 'end' is the class Draw"),  # type: ignore[arg-type]
        (draw, Transition(draw, often), "the target of a transition from 'draw' to the function often is"),  # type: ignore[arg-type]
        (draw, Transition(draw, None), "the target of a transition from 'draw' to None is None"),  # type: ignore[arg-type]
        (draw, Transition(draw, end, often), "the guard of a transition from 'draw' to 'end' is the function often"),  # type: ignore[arg-type]
        (draw, Transition(draw, end, "often"), "is 'often', expected a Guard"),  # type: ignore[arg-type]
        (draw, Transition(draw, end, True), "is True, expected a Guard"),  # type: ignore[arg-type]
        (draw, Transition(draw, end, mood), "is the choice mood, expected a Guard"),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_a_finding(start: Any, row: Any, expected: str) -> None:
    told = found(start, row)
    assert any(expected in line for line in told), told


def test_mistakes_come_all_together_with_what_to_do() -> None:
    told = found(
        "draw", Transition(draw, end, often), (draw, end), signals=["halt", Signal("stop", to=often)], edits=[often]
    )  # type: ignore[arg-type]
    assert [line.partition(";")[2].strip() for line in told] == [
        "make an object of a subclass of Phase",
        "make a guard of a function with @guard, or Guard(name, function), or of a choice with is_(value)",
        "write Transition(source, target, guard)",
        "write Signal(name, to=phase)",
        "make an object of a subclass of Phase",
        "make an object of a subclass of Edit",
    ]


def test_halves_that_nobody_would_await() -> None:
    class Fetch(Phase[Any, int]):
        async def run(self, context: Any) -> int:  # type: ignore[override]
            return 1

    class Keep(Phase[Any, int]):
        def apply(self, context: Any, outcome: int) -> Any:
            yield outcome

    for phase, half in ((Fetch(), "run"), (Keep(), "apply")):
        [line] = found(phase, Transition(phase, end))
        assert f"{half}() is a coroutine or generator, which nobody awaits" in line


def test_a_wait_that_works_or_has_half_a_deadline() -> None:
    class Busy(Wait[Any, int]):
        def run(self, context: Any) -> int:
            return 1

    class Endless(Wait[Any, int]):
        def deadline(self, context: Any) -> float:
            return 0

    class Early(Wait[Any, int]):
        def late(self, context: Any) -> int:
            return 0

    for phase, words in ((Busy(), "a run() of its own"), (Endless(), "and not the other"), (Early(), "not the other")):
        [line] = found(phase, Transition(phase, end))
        assert words in line


@pytest.mark.parametrize("name", ["*", "="])
def test_names_that_the_library_would_misroute(name: str) -> None:
    phase: Phase[Any, Any] = Phase(name)
    [line] = found(phase, Transition(phase, end))
    assert line.startswith(f"reserved name {name!r}")
    [line] = found(draw, Transition(draw, end), signals=[Signal("advance", to=end)])
    assert line.startswith("reserved name 'advance'")


def test_guards_have_no_truth_of_their_own() -> None:
    one, other = guard(often), Guard("never", lambda context: False)
    for wrong in (lambda: one and other, lambda: one or other, lambda: not one, lambda: bool(one)):
        with pytest.raises(TypeError, match="join guards with"):
            wrong()
