"""A choice is one variable of many values: complete and exclusive over them, in both interpreters."""

from enum import Enum, IntEnum
from typing import Any, Literal

import pytest
from dispatch import TICKETS, Desk, Route, desk, done, machine, paid, plan, ready, route, search
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    Choice,
    End,
    Finding,
    GuardError,
    InvalidMachine,
    Machine,
    Phase,
    PhaseError,
    Run,
    Transition,
    to_dot,
    to_mermaid,
)

INTERPRETERS = ("compiled", "transitions")


def findings(*table: Transition[Any]) -> list[Finding]:
    with pytest.raises(InvalidMachine) as refused:
        Machine("wrong", table[0].source, table)  # type: ignore[arg-type]
    return list(refused.value.findings)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("has_paid", [True, False])
def test_each_value_leads_its_own_way(interpreter: str, has_paid: bool) -> None:
    run = Run(machine, Desk([*TICKETS], has_paid), interpreter=interpreter)  # type: ignore[arg-type]
    run.start()
    assert run.context.done == ["tools" if has_paid else "reply", "search", "reply", "search"]
    assert [step.guards for step in run.steps()][:3] == [
        {"route": "tools", "paid": has_paid}, {}, {"route": "search", "paid": has_paid},
    ]  # fmt: skip


def test_a_run_says_what_its_choice_is_now() -> None:
    assert ready().guards == {"route": "reply", "paid": False}


@given(st.lists(st.sampled_from(Route)), st.booleans())
def test_both_interpreters_agree(tickets: list[Route], has_paid: bool) -> None:
    runs = [Run(machine, Desk([*tickets], has_paid), interpreter=each) for each in INTERPRETERS]  # type: ignore[arg-type]
    for run in runs:
        run.start()
    assert list(runs[0].steps()) == list(runs[1].steps())
    assert runs[0].context == runs[1].context


def test_missing_values_are_told_in_one_line() -> None:
    a: Phase[Desk, None] = Phase("a")
    told = findings(Transition(a, done, route.is_(Route.TOOLS, Route.REPLY, Route.STOP)))
    assert [finding.message for finding in told] == ["no transition is enabled when route = search"]
    told = findings(Transition(a, done, route.is_(Route.TOOLS) & paid))
    assert [finding.message for finding in told] == [
        "no transition is enabled when ~paid or (route = search | reply | stop) & paid"
    ]


def test_values_that_two_transitions_take_are_told() -> None:
    a: Phase[Desk, None] = Phase("a")
    [finding] = findings(
        Transition(a, done, route.is_(Route.TOOLS, Route.SEARCH)),
        Transition(a, a, ~route.is_(Route.TOOLS)),
    )
    assert finding.kind == "ambiguous"
    assert finding.message == (
        "[a -> done when route = tools | search] and [a -> a when ~(route = tools)] are all enabled when route = search"
    )


def test_two_values_at_once_can_never_be() -> None:
    a: Phase[Desk, None] = Phase("a")
    told = findings(
        Transition(a, done, ~route.is_(Route.TOOLS)),
        Transition(a, a, route.is_(Route.TOOLS)),
        Transition(a, plan, route.is_(Route.TOOLS) & route.is_(Route.SEARCH)),
        *machine.transitions,
    )
    assert [finding.kind for finding in told] == ["never"]


def test_two_choices_of_one_name_are_a_finding() -> None:
    a: Phase[Desk, None] = Phase("a")
    other: Choice[Desk] = Choice("route", ("x", "y"), lambda context: "x")
    [finding] = findings(Transition(a, done, route.is_(Route.TOOLS)), Transition(a, done, other.is_("x")))
    assert (finding.kind, finding.phase) == ("duplicate name", "a")


def test_more_cases_than_can_be_proved_are_a_finding() -> None:
    a, end = Phase[Any, None]("a"), End("end")
    many: Choice[Any] = Choice("many", range(1025), lambda context: 0)
    [finding] = findings(Transition(a, end, many.is_(0)), Transition(a, a, ~many.is_(0)))
    assert finding.kind == "too many cases"
    assert "1 guards and choices (many) have 1,025 cases together, at most 1,024" in finding.message
    most: Choice[Any] = Choice("most", range(1024), lambda context: 7)
    run = Run(Machine("most", a, [Transition(a, end, most.is_(7)), Transition(a, a, ~most.is_(7))]), object())
    run.start()
    assert next(run.steps()).guards == {"most": "7"}


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize(
    ("given", "words"), [("elsewhere", "gave 'elsewhere' (str)"), (None, "gave None"), ([1], "gave [1] (list)")]
)
def test_a_value_that_is_none_of_them_names_the_choice_and_its_values(interpreter: Any, given: Any, words: str) -> None:
    run = Run(desk(Choice("way", [*map(str, Route)], lambda context: given)), Desk([]), interpreter=interpreter)
    with pytest.raises(PhaseError) as failed:
        run.start()
    assert isinstance(failed.value.__cause__, GuardError)
    assert words in str(failed.value)
    assert "choice 'way'" in str(failed.value)
    assert "it must give one of 'tools', 'search', 'reply', 'stop'" in str(failed.value)


def test_a_predicate_that_raises_names_the_choice_and_its_values() -> None:
    broken: Choice[Desk] = Choice("way", [*map(str, Route)], lambda context: {}["nothing"])
    for asked in (broken, broken.is_("tools"), ~broken.is_("tools")):
        with pytest.raises(GuardError, match="choice 'way' raised KeyError: 'nothing'; it must give one of 'tools'"):
            asked(Desk([]))


def test_a_choice_of_any_kind_of_values() -> None:
    class Colour(Enum):
        RED = (255, 0, 0)
        BLUE = (0, 0, 255)

    class Level(IntEnum):
        LOW = 1
        HIGH = 2

    for values, found, word in (
        (Colour, Colour.BLUE, "BLUE"),
        (Level, Level.HIGH, "HIGH"),
        (Literal["left", "right"], "right", "right"),
        (("left", "right"), "right", "right"),
        ([False, True], True, "True"),
        (range(3), 2, "2"),
    ):
        chosen: Choice[Any] = Choice("it", values, lambda context, found=found: found)
        assert chosen(None) == found
        assert chosen.value(None) == word
        assert chosen.is_(found)(None) is True
        assert chosen.is_(found).name == f"it = {word}"
        assert (~chosen.is_(found))(None) is False


def test_a_choice_that_cannot_be_made_is_refused_at_once() -> None:
    for values, words in (
        ((), "has no values"),
        ("ab", "needs an Enum class, a Literal type or a sequence of values, not 'ab'"),
        (3, "needs an Enum class, a Literal type or a sequence of values, not 3"),
        (("a", "a"), "has a value twice: a, a"),
        ((1, "1"), "has a value twice: 1, 1"),
        ((1.5, 2.5), "cannot have the value 1.5"),
    ):
        with pytest.raises(ValueError, match=f"choice 'it' {words}"):
            Choice("it", values, lambda context: None)
    with pytest.raises(
        ValueError, match=r"choice 'route' is never 'elsewhere': expected one of <Route.TOOLS: 'tools'>"
    ):
        route.is_("elsewhere")
    with pytest.raises(ValueError, match="never \\[\\]"):
        route.is_([])
    with pytest.raises(ValueError, match="compared with nothing"):
        route.is_()


def test_a_choice_has_no_truth() -> None:
    with pytest.raises(TypeError, match=r"choice 'route' has no truth of its own: ask whether it is_\(...\)"):
        bool(route)


def test_expressions_read_as_they_bind() -> None:
    one, two = route.is_("tools"), route.is_("tools", "stop")
    assert (one & paid).name == "route = tools & paid"
    assert (two & paid).name == "(route = tools | stop) & paid"
    assert (paid | two).name == "paid | (route = tools | stop)"
    assert (~one).name == "~(route = tools)"
    assert (one & paid | ~two).name == "route = tools & paid | ~(route = tools | stop)"


def test_it_is_drawn() -> None:
    assert " : route #61; search\n" in to_mermaid(machine)
    assert 'label="  route = search  "' in to_dot(machine)


def test_the_fingerprint_covers_the_values() -> None:
    def of(*values: str) -> str:
        chosen: Choice[Any] = Choice("it", values, lambda context: "a")
        a, end = Phase[Any, None]("a"), End("end")
        return Machine("m", a, [Transition(a, end, chosen.is_("a")), Transition(a, a, ~chosen.is_("a"))]).fingerprint

    assert of("a", "b") == of("a", "b")
    assert len({of("a", "b"), of("b", "a"), of("a", "b", "c")}) == 3


def test_a_phase_spliced_in_keeps_the_choice() -> None:
    between: Phase[Desk, None] = Phase("between")
    run = Run(machine.insert(between, between=(plan, search)), Desk([*TICKETS]))
    run.start()
    assert [step.phase for step in run.steps()].count("between") == 2
