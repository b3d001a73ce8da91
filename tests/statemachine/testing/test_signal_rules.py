"""The rules send signals with whatever they carry, and find what is wrong with those and their guards."""

import random
from dataclasses import replace
from typing import Any

import pytest
from desk import Approval, Text, begun, desk, machine, written
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant
from rule_checks import BRIEF, caught, hold, hold_and_see

from statemachine import Guard, Signal
from statemachine.testing import machine_rules

TEXTS = st.builds(Text, length=st.integers(1, 4))
DRAFTS = {"correct": st.fixed_dictionaries({"drafts": st.integers(0, 5)})}


def signals(approve: type[Signal[Text, Any]], when: Guard[Text] | None = None) -> Any:
    """Rules of a machine with this signal."""
    return machine_rules(replace(machine, signals=[approve("approve", to="publish", sources=("review",), when=when)]),
                         TEXTS, edits=DRAFTS)  # fmt: skip


def test_a_sound_machine_holds_with_anything_of_the_type() -> None:
    rules = machine_rules(machine, TEXTS, edits=DRAFTS)
    hold_and_see(rules, "signals", "edits")


def test_signals_are_left_to_wait_and_taken_later() -> None:
    hurry = Signal("hurry", to="publish", sources=("review",))
    waited, taken_later = 0, 0

    class Watched(machine_rules(desk(signals=[hurry], edits=[]), TEXTS)):  # type: ignore[misc]  # made just now
        waiting = 0

        @invariant()
        def look(self) -> None:
            nonlocal waited, taken_later
            waiting = len(self.run.pending)
            taken_later += waiting < self.waiting and any(event.kind == "signal" for event in self.run.events)
            waited += waiting > self.waiting
            self.waiting = waiting

    for _ in range(5):
        hold(Watched, settings(BRIEF, derandomize=False))
        if waited and taken_later:
            return
    raise AssertionError(f"{waited} waited, and {taken_later} were taken later")


def test_strategies_narrow_what_is_sent_and_what_cannot_be_entered_changes_nothing() -> None:
    thief = {"approve": st.just(Approval("the thief"))}
    hold(machine_rules(machine, TEXTS, signals=thief, may_raise=PermissionError))
    with pytest.raises((PermissionError, BaseExceptionGroup)):
        hold(machine_rules(machine, TEXTS, signals=thief))
    for name in ("drop", "aprove"):
        with pytest.raises(ValueError, match=f"signals are given to {name}, but what carries something is approve"):
            machine_rules(machine, TEXTS, signals={name: st.none()})


def test_an_apply_that_draws_is_found() -> None:
    class Drawing(Signal[Text, int]):
        def apply(self, context: Text, payload: int) -> None:
            context.drafts = random.randrange(10**6)

    assert caught(signals(Drawing)).startswith("signal 'approve' makes something else of field 'drafts'")


def test_an_apply_that_changes_what_it_was_given_is_found() -> None:
    class Growing(Signal[Text, list[int]]):
        def apply(self, context: Text, payload: list[int]) -> None:
            payload.append(1)

    assert caught(signals(Growing)).startswith("signal 'approve' changes its outcome in apply()")


def test_a_payload_whose_type_no_record_brings_back_is_found() -> None:
    class Loose(Signal[Text, Any]):
        def apply(self, context: Text, payload: Any) -> None: ...

    rules = machine_rules(
        replace(machine, signals=[Loose("approve", to="publish")]), TEXTS, signals={"approve": st.just((1, 2))}
    )
    assert "of signal 'approve' comes back from a journal as [1, 2]" in caught(rules)


def test_guards_that_are_not_pure_are_found() -> None:
    class Plain(Signal[Text, int]):
        def apply(self, context: Text, payload: int) -> None: ...

    fickle = Guard[Text]("fickle", lambda context: random.random() < 0.5)
    assert "guard must be pure" in caught(signals(Plain, fickle))
    marking = Guard[Text]("marking", lambda context: context.notes.append("asked") is None)
    assert "guard 'marking' changes field 'notes'" in caught(signals(Plain, marking))
    partial = Guard[Text]("partial", lambda context: 1 // (context.drafts - context.length) > 0)
    assert "a guard must have a value for every context" in caught(signals(Plain, partial | written))


def test_both_interpreters_are_tried() -> None:
    seen = set()

    class Seen(Signal[Text, bool]):
        def apply(self, context: Text, payload: bool) -> None:
            seen.add(payload)

    rules = machine_rules(desk(signals=[Seen("seen", to="draft", when=begun)], edits=[]), TEXTS)
    hold(rules)
    assert seen == {True, False}
    assert rules.coverage.signals["seen"] > 0
