"""Error ways are rows of the truth table: complete and exclusive over each class, or the table is refused."""

from typing import Any

import pytest
from charging import (
    TABLE,
    CardRefused,
    GatewayDown,
    GatewayError,
    GatewayTimeout,
    back_off,
    charge,
    dropped,
    machine,
    tries_left,
)
from charging import paid as end

from statemachine import (
    End,
    Finding,
    InvalidMachine,
    Machine,
    Phase,
    Raised,
    Signal,
    Transition,
    Wait,
    guard,
    to_dot,
    to_mermaid,
)


def findings(*table: Transition[Any], signals: Any = ()) -> list[Finding]:
    with pytest.raises(InvalidMachine) as refused:
        Machine("wrong", table[0].source, table, signals=signals)  # type: ignore[arg-type]
    return list(refused.value.findings)


def told(*table: Transition[Any]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.message) for finding in findings(*table)]


@guard
def insured(context: object) -> bool:
    return True


def test_a_class_whose_ways_are_not_complete_is_stuck() -> None:
    assert told(Transition(charge, end), Transition(charge, charge, tries_left, raises=GatewayDown)) == [
        ("stuck", "no transition is enabled on GatewayDown when ~tries_left")
    ]


def test_a_class_with_two_ways_at_once_is_ambiguous() -> None:
    assert told(
        Transition(charge, end),
        Transition(charge, charge, raises=(GatewayDown, CardRefused)),
        Transition(charge, end, tries_left, raises=GatewayDown),
    ) == [
        (
            "ambiguous",
            "[charge -> charge on GatewayDown | CardRefused] and [charge -> paid on GatewayDown when tries_left] are "
            "all enabled on GatewayDown when tries_left",
        )
    ]


def test_ways_for_outcomes_and_for_exceptions_do_not_stand_in_for_each_other() -> None:
    assert told(Transition(charge, end, tries_left), Transition(charge, end, ~tries_left, raises=GatewayDown)) == [
        ("stuck", "no transition is enabled when ~tries_left"),
        ("stuck", "no transition is enabled on GatewayDown when tries_left"),
    ]
    assert told(Transition(charge, end, raises=GatewayDown)) == [("stuck", "no transition is enabled when reached")]


def test_a_way_that_can_never_be_taken() -> None:
    assert told(
        Transition(charge, end),
        Transition(charge, end, raises=GatewayDown),
        Transition(charge, charge, insured & ~insured, raises=GatewayDown),
    ) == [
        (
            "never",
            "[charge -> charge on GatewayDown when insured & ~insured] can never be taken, its guard is false in every "
            "case",
        )
    ]


def test_a_class_and_its_subclass_are_ambiguous() -> None:
    assert told(
        Transition(charge, end),
        Transition(charge, end, raises=(GatewayTimeout, CardRefused)),
        Transition(charge, charge, raises=GatewayError),
    ) == [("ambiguous", "GatewayTimeout is a GatewayError too, and there are ways for both")]


def test_two_classes_of_one_name() -> None:
    other = type("GatewayDown", (Exception,), {})
    kinds = [finding.kind for finding in findings(Transition(charge, end), Transition(charge, end, raises=GatewayDown),
                                                  Transition(charge, charge, raises=other))]  # fmt: skip
    assert kinds == ["duplicate name"]


def test_waits_and_ends_have_no_error_ways() -> None:
    class Answer(Wait[Any, int]):
        pass

    answer = Answer()
    assert told(Transition(answer, end), Transition(answer, end, raises=GatewayDown)) == [
        (
            "never",
            "[answer -> paid on GatewayDown] can never be taken, a Wait runs nothing that raises",
        )
    ]
    assert [kind for kind, _ in told(Transition(charge, end), Transition(end, charge, raises=GatewayDown))] == ["final"]


@pytest.mark.parametrize(
    ("raises", "words"),
    [
        ("GatewayDown", "'GatewayDown'"),
        (KeyboardInterrupt, "the class KeyboardInterrupt"),
        (int, "the class int"),
        (GatewayDown(), "GatewayDown()"),
        ((GatewayDown, None), "None"),
        ([GatewayDown], "[<class 'charging.GatewayDown'>]"),
    ],
)
def test_what_is_no_class_of_exceptions_is_a_mistake(raises: Any, words: str) -> None:
    [finding] = findings(Transition(charge, end), Transition(charge, charge, raises=raises))
    assert finding.kind == "mistake"
    assert finding.message == (
        f"what a transition from 'charge' to 'charge' is for is {words}, expected a kind of exception"
    )
    assert "subclass of Exception" in finding.remedy


def test_halves_that_nobody_would_await_and_outcomes_that_mean_something_else() -> None:
    class Late(Phase[Any, int]):
        async def apply_error(self, context: Any, raised: Raised) -> None:  # type: ignore[override]
            pass

    class Odd(Phase[Any, Raised]):
        pass

    for phase, words in ((Late(), "apply_error() is a coroutine"), (Odd(), "declares Raised as its outcome")):
        [finding] = findings(Transition(phase, end))
        assert finding.kind == "mistake"
        assert words in finding.message


def test_names_of_the_events_are_reserved() -> None:
    [finding] = findings(Transition(charge, end), signals=[Signal("advance on GatewayDown", to=charge)])
    assert (finding.kind, finding.phase) == ("reserved name", "advance on GatewayDown")


def test_a_way_reads_as_it_is_taken() -> None:
    assert [*map(str, TABLE)] == [
        "charge -> paid",
        "charge -> back_off on GatewayDown when tries_left",
        "charge -> dropped on GatewayDown when ~tries_left",
        "charge -> dropped on CardRefused",
        "back_off -> charge",
    ]
    assert str(Transition("a", "b", raises=(GatewayDown, CardRefused))) == "a -> b on GatewayDown | CardRefused"


def test_it_is_drawn_dashed() -> None:
    assert "    s0 --> s2 : on GatewayDown when tries_left\n" in to_mermaid(machine)
    [line] = [line for line in to_dot(machine).splitlines() if "on CardRefused" in line]
    assert "style=dashed" in line
    assert to_dot(machine).count("style=dashed") == 3


def test_the_fingerprint_covers_them() -> None:
    other = [*TABLE[:3], Transition(charge, dropped, raises=ValueError), *TABLE[4:]]
    assert Machine("purchase", charge, other).fingerprint != machine.fingerprint


def test_a_phase_spliced_in_keeps_them() -> None:
    told: Phase[Any, None] = Phase("told")
    longer = machine.insert(told, between=(charge, dropped))
    assert [*map(str, longer.transitions)][2:4] == [
        "charge -> told on GatewayDown when ~tries_left", "charge -> told on CardRefused",
    ]  # fmt: skip
    assert isinstance(longer.phases["dropped"], End)
    assert back_off.name in longer.phases
