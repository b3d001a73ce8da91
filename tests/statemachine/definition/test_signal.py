"""What a signal says of itself, and how it stands in the table of the library and in the fingerprint."""

from dataclasses import replace
from typing import Any

from desk import Approve, Text, machine

from statemachine import (
    End,
    Machine,
    Phase,
    Signal,
    Transition,
)


def test_the_library_holds_the_same_table() -> None:
    [hurry_first, hurry_second] = machine.signals_named("hurry")
    assert (hurry_first.condition, hurry_second.condition) == ("begun", "")
    events = machine.transitions_machine.events["hurry"].transitions
    assert {source: [str(way.dest) for way in ways] for source, ways in events.items()} == {
        "draft": ["review"], "review": ["publish"],
    }  # fmt: skip


def test_a_signal_says_what_it_is() -> None:
    assert [str(signal) for signal in machine.signals] == [
        "hurry: draft -> review when begun",
        "hurry: review -> publish",
        "approve(Approval): review -> publish when written",
        "drop: any phase -> dropped",
    ]


def test_its_fingerprint_tells_guards_payloads_and_sources_of_edits() -> None:
    class Other(Signal[Text, int]):
        def apply(self, context: Text, payload: int) -> None: ...

    end: End[Text] = End("end")
    a: Phase[Text, None] = Phase("a")

    def made(*signals: Signal[Text, Any], **options: Any) -> str:
        return Machine("m", start=a, transitions=[Transition(a, end)], signals=signals, **options).fingerprint

    guarded = Signal("go", to=a, when=machine.signals[0].when)
    prints = [made(), made(Signal("go", to=a)), made(guarded), made(Other("go", to=a)), made(Approve("go", to=a))]
    assert len(set(prints)) == 5
    edit, bound = (replace(machine, edits=[type(machine.edits[0])("correct", sources=at)]) for at in ((), ("review",)))
    assert edit.fingerprint != bound.fingerprint == machine.fingerprint
