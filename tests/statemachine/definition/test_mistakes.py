"""What is of the wrong type in a table is told as a finding, all of it at once, and nothing is run."""

from typing import Any

import pytest

from statemachine import Choice, Edit, End, Guard, InvalidMachine, Machine, Phase, Signal, Transition, Wait, guard

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


def test_the_reserved_name_is_told_once_however_many_signals_have_it() -> None:
    late: Phase[Any, Any] = Phase("late")
    signals = [Signal("advance", to=end, sources=(draw,)), Signal("advance", to=end, sources=(late,))]
    told = found(draw, Transition(draw, late), Transition(late, end), signals=signals)
    assert [line for line in told if "reserved" in line] == [
        "reserved name 'advance': is an event that leaves a phase after it ran; rename the signal"
    ]


def test_mistakes_in_signals_and_edits_are_findings() -> None:
    class Silent(Signal[Any, int]):
        pass

    class Later(Signal[Any, int]):
        async def apply(self, context: Any, payload: int) -> None: ...  # type: ignore[override]

    class Note(Edit[Any, int]):
        pass

    signals = [Signal("go", to=end, when=often), Silent("say", to=end), Later("later", to=end)]  # type: ignore[arg-type]
    assert found(draw, Transition(draw, end), signals=signals, edits=[Note("note", sources=(often,))]) == [  # type: ignore[arg-type]
        "mistake 'the function often': the guard of signal 'go' is the function often, expected a Guard; make a guard "
        "of a function with @guard, or Guard(name, function), or of a choice with is_(value)",
        "mistake 'say': carries int, but has no apply() to enter it; give its class an apply(context, payload)",
        "mistake 'later': apply() is a coroutine or generator, which nobody awaits; make it a plain function; what it "
        "waits for can be a Wait",
        "mistake 'the function often': a source of edit 'note' is the function often, expected a Phase, or the name of "
        "one; make an object of a subclass of Phase",
    ]  # fmt: skip


def test_what_is_wrong_with_signals_and_edits_is_found() -> None:
    class Number(Signal[Any, int]):
        def apply(self, context: Any, payload: int) -> None: ...

    class Note(Edit[Any, int]):
        pass

    late: Phase[Any, Any] = Phase("late")
    table = [Transition(draw, late), Transition(late, end)]
    one, other = guard(often), Guard("often", lambda context: False)
    many = Guard("g0", lambda context: True)
    for n in range(1, 11):
        many = many & Guard(f"g{n}", lambda context: True)
    cases: list[tuple[list[Any], list[Any], str]] = [
        ([Signal("go", to=late), Signal("go", to=end, sources=(late,))], [],
         "ambiguous 'go': several signals are called so at 'late'; give each sources of its own"),
        ([Signal("go", to=late), Signal("go", to=late)], [],
         "ambiguous 'go': several signals are called so at 'draw', 'late'; give each sources of its own"),
        ([Signal("go", to=late, sources=(draw,)), Number("go", to=end, sources=("late",))], [],
         "ambiguous 'go': signals that are called so carry nothing and int; let all of them carry the same, or give "
         "them other names"),
        ([Signal("go", to=late, sources=(end,))], [],
         "final 'end': is a source of signal 'go', but a run ends here; take it out of them"),
        ([Signal("go", to=late, when=one & ~one)], [],
         "never 'go': the signal can never be taken, its guard often & ~often is false in every case; correct the "
         "guard or take the signal out"),
        ([Signal("go", to=late, when=one | other)], [],
         "duplicate name 'go': two different guards or choices are called 'often'; give each its own name"),
        ([Signal("go", to=late, when=many)], [],
         "too many cases 'go': 11 guards and choices (g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10) have 2,048 cases "
         "together, at most 1,024 can be proved; merge guards"),
        ([], [Note("note"), Note("note")], "duplicate name 'note': 2 edits are called so; give each its own name"),
        ([], [Note("note", sources=("nowhere",))],
         "dangling 'nowhere': edit 'note' names it, but no phase is called so; correct the name; phases: draw, late, "
         "end"),
        ([], [Note("note", sources=(Phase("stray"),))],
         "dangling 'stray': edit 'note' names it, but no phase is called so; correct the name; phases: draw, late, "
         "end"),
    ]  # fmt: skip
    for signals, edits, expected in cases:
        assert found(draw, *table, signals=signals, edits=edits) == [expected]


def test_guards_have_no_truth_of_their_own() -> None:
    one, other = guard(often), Guard("never", lambda context: False)
    for wrong in (lambda: one and other, lambda: one or other, lambda: not one, lambda: bool(one)):
        with pytest.raises(TypeError, match="join guards with"):
            wrong()
