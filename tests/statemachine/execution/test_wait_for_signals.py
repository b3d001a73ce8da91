"""A `Wait` that no transition leaves waits for signals alone: sound, recorded, tested like any other phase."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rule_checks import BRIEF

from statemachine import (
    End,
    IllegalMove,
    InvalidMachine,
    Journal,
    JournalWriter,
    Machine,
    Phase,
    Run,
    Signal,
    Status,
    Transition,
    Wait,
    play,
    recover,
    restore,
    to_mermaid,
    verify,
)
from statemachine.testing import machine_rules, run_rules

INTERPRETERS = ("compiled", "transitions")


@dataclass
class Gate:
    coins: int = 0
    heard: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Heard(Signal[Gate, None]):
    """Is sent with nothing, and enters what it knows itself."""

    noise: str = ""

    def apply(self, context: Gate, payload: None) -> None:
        context.heard.append(self.noise)


locked, unlocked, away = Wait[Gate, None]("locked"), Wait[Gate, None]("unlocked"), End[Gate]("away")
SIGNALS = [
    Heard("coin", to=unlocked, sources=(locked,), noise="clink"),
    Heard("push", to=locked, sources=(unlocked,), noise="creak"),
    Signal("remove", to=away, sources=(locked,)),
]
machine = Machine("gate", start=locked, transitions=[], signals=SIGNALS)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_signals_alone_drive_it(interpreter: Any) -> None:
    run = Run(machine, Gate(), interpreter=interpreter)
    assert run.start() is Status.WAITING
    assert run.possible.signals == ("coin", "remove")
    for name in ("coin", "push", "coin"):
        run.signal(name)
    assert (run.phase, run.possible.signals) == (unlocked, ("push",))
    run.signal("push")
    run.signal("remove")
    assert (run.status, run.step_count, run.context.heard) == (Status.DONE, 0, ["clink", "creak"] * 2)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_it_takes_no_answer_and_stays_as_it_was(interpreter: Any) -> None:
    run = Run(machine, Gate(), interpreter=interpreter)
    run.start()
    for move in (lambda: run.answer(None), run.time_out, lambda: run.take(None)):
        with pytest.raises(IllegalMove, match="waits at 'locked' for a signal, not for an answer: 'coin', 'remove'"):
            move()
    assert (run.status, run.context) == (Status.WAITING, Gate())
    run.signal("coin")
    assert run.phase is unlocked


def kinds(start: Phase[Gate, Any], *transitions: Transition[Gate], signals: list[Signal[Gate, Any]]) -> list[str]:
    with pytest.raises(InvalidMachine) as invalid:
        Machine("gate", start, transitions, signals=signals)
    return [f"{finding.kind} {finding.phase}" for finding in invalid.value.findings]


def test_what_only_signals_leave_is_sound_only_where_the_run_waits() -> None:
    deaf, busy = Wait[Gate, None]("deaf"), Phase[Gate, None]("busy")
    assert kinds(locked, Transition(locked, deaf), signals=[]) == ["no end locked", "no end deaf", "stuck deaf"]
    assert kinds(busy, signals=[Signal("remove", to=away)]) == ["no end busy", "stuck busy"]
    assert kinds(locked, signals=[Signal("coin", to=unlocked), Signal("push", to=locked)]) == [
        "no end locked",
        "no end unlocked",
    ]


def test_a_deadline_where_no_answer_is_taken_is_found() -> None:
    class Impatient(Wait[Gate, int]):
        def deadline(self, context: Gate) -> float:
            return 1.0

        def late(self, context: Gate) -> int:
            return 0

    assert kinds(Impatient(), signals=[Signal("remove", to=away)]) == ["stuck impatient"]


def test_a_signal_that_declares_none_is_drawn_and_told_without_a_payload() -> None:
    assert "signal coin\n" in to_mermaid(machine)
    assert str(SIGNALS[0]) == "coin: locked -> unlocked"
    with pytest.raises(ValueError, match="Expected `null`"):
        Run(machine, Gate()).signal("coin", 5)


def recorded(path: Path) -> Run[Gate]:
    run = Run(machine, Gate(), journal=JournalWriter(path, every="step"))
    run.start()
    run.signal("coin")
    return run


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_it_is_recorded_replayed_recovered_and_restored(interpreter: Any, tmp_path: Path) -> None:
    path = tmp_path / "j"
    recorded(path).snapshot(tmp_path / "s")
    restored = Run(machine, Gate(), interpreter=interpreter)
    assert restore(tmp_path / "s", restored) is None
    again = Run(machine, Gate(), interpreter=interpreter)
    assert recover(path, again, every="step") is None
    for run in (restored, again):
        assert (run.status, run.phase, run.context.heard) == (Status.WAITING, unlocked, ["clink"])
        run.signal("push")
        run.signal("remove")
    for replay in (play, lambda journal, run: verify(journal, run).divergence):
        run = Run(machine, Gate(), interpreter=interpreter)
        assert replay(Journal.open(path), run) is None
        assert (run.status, run.context) == (Status.DONE, again.context)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_record_of_an_answer_diverges_where_none_is_taken_any_more(interpreter: Any, tmp_path: Path) -> None:
    before = Machine("gate", locked, [Transition(locked, away)], signals=[Signal("coin", to=away, sources=(locked,))])
    run = Run(before, Gate(), journal=JournalWriter(tmp_path / "j"))
    run.start()
    run.answer(None)
    divergence = play(Journal.open(tmp_path / "j"), Run(machine, Gate(), interpreter=interpreter))
    assert divergence is not None
    assert (divergence.step, divergence.phase, divergence.field) == (0, "locked", "target")
    assert divergence.replayed == "none: it waits for signals alone"


@pytest.mark.slow
def test_the_rules_hold_and_all_signals_are_tried() -> None:
    coverage = run_rules(machine_rules(machine, Gate, must_end=True), BRIEF)
    assert "signals: 3 of 3 seen" in str(coverage)
    with pytest.raises(ValueError, match="answers are given to locked, but what waits is no phase"):
        machine_rules(machine, Gate, answers={"locked": None})  # type: ignore[dict-item]
