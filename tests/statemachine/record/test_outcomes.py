"""Outcomes that JSON cannot hold exactly are refused where they arise, before anything has changed."""

import enum
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from statemachine_recorded import Draw, Walk, record, walk

from statemachine import (
    Edit,
    Journal,
    JournalError,
    JournalWriter,
    OutcomeError,
    Phase,
    PhaseError,
    Run,
    SnapshotError,
    Status,
    play,
)
from statemachine.record.exact import MAX_LINE


@dataclass
class Box:
    inside: Any


class Colour(enum.Enum):
    RED = "red"
    ODD = math.inf


ODD = {
    "nan": math.nan, "inf": math.inf, "minus inf": -math.inf, "2**64": 2**64, "10**30": 10**30, "low": -(2**63) - 1,
    "bytes": b"x", "bytearray": bytearray(b"x"), "set": {1}, "frozenset": frozenset(), "surrogate": "\ud800",
    "object": object(), "complex": 1j, "function": len, "mixed keys": {1: "a", "1": "b"}, "float keys": {1.5: 2},
    "enum": Colour.ODD, "keys": {"\ud800": 1},
}  # fmt: skip
AROUND = {
    "alone": lambda value: value, "list": lambda value: [1, value], "tuple": lambda value: ("a", (value,)),
    "dict": lambda value: {"a": {"b": value}}, "dataclass": lambda value: Box([Box(value)]),
}  # fmt: skip
GOOD = [
    0, -(2**63), 2**64 - 1, 0.0, -0.0, 1e308, 5e-324, "", "\x00é\U0001f600", True, [], (), {}, {"a": [None]}, {1: "a"},
    Box(Box([1.5])), Colour.RED, "null", ["null", None],
]  # fmt: skip


class Given(Draw):
    """Gives what it was told to, at its fourth step."""

    def __init__(self, given: Any) -> None:
        super().__init__("draw")
        self.given = given

    def run(self, context: Walk) -> Any:
        return self.given if len(context.drawn) == 3 else 2

    def apply(self, context: Walk, outcome: Any) -> None:
        context.drawn.append(outcome if isinstance(outcome, int) else 2)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ODD)
def test_the_phase_that_gave_it_is_named_and_nothing_has_changed(tmp_path: Path, name: str, around: str) -> None:
    run = Run(walk(Given(AROUND[around](ODD[name]))), Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    with pytest.raises(PhaseError, match=r"in phase 'draw' at step 3: OutcomeError: JSON cannot hold") as failure:
        run.start()
    assert isinstance(failure.value.__cause__, OutcomeError)
    assert len(str(failure.value)) < 1000
    assert (run.status, run.phase_name, run.context.drawn) == (Status.FAILED, "draw", [2, 2, 2])
    *_, error, end = Journal.open(tmp_path / "a.jsonl").records()
    assert (error.n, error.exception, end.status) == (3, "OutcomeError", "failed")  # type: ignore[union-attr]


@pytest.mark.parametrize("value", GOOD, ids=repr)
def test_what_json_holds_is_recorded(tmp_path: Path, value: Any) -> None:
    run = Run(walk(Given(value)), Walk(limit=6), journal=JournalWriter(tmp_path / "a.jsonl"))
    assert run.start() is Status.DONE


def test_an_outcome_too_long_for_a_line_is_refused_when_it_arises(tmp_path: Path) -> None:
    run = Run(walk(Given("x" * MAX_LINE)), Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    with pytest.raises(PhaseError, match=r"OutcomeError: the outcome is \d+ bytes long, a record holds at most"):
        run.start()
    assert run.step_count == 3
    assert (tmp_path / "a.jsonl").stat().st_size < 10_000


def test_a_deep_outcome_is_refused(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PhaseError, match="OutcomeError"):
        Run(walk(Given(deep)), Walk(), journal=JournalWriter(tmp_path / "a.jsonl")).start()


class Anything(Edit[Walk, Any]):
    def run(self, context: Walk, *, value: Any) -> Any:
        return value

    def apply(self, context: Walk, outcome: Any) -> None:
        context.bonus += 1


@pytest.mark.parametrize("name", ODD)
def test_an_edit_is_refused_too_and_the_run_goes_on(tmp_path: Path, name: str) -> None:
    from dataclasses import replace

    editable = replace(walk(Draw()), edits=[Anything("anything")])
    run = Run(editable, Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    run.step()
    with pytest.raises(OutcomeError, match="JSON cannot hold the outcome"):
        run.edit("anything", value=[ODD[name]])
    assert (run.status, run.context.bonus, run.events) == (Status.PAUSED, 0, [])
    run.resume()
    assert run.status is Status.DONE


def test_a_run_without_a_journal_may_hold_it_but_not_be_saved(tmp_path: Path) -> None:
    run = Run(walk(Given({1, 2})), Walk(), keep=True)
    run.until(lambda run: run.step_count == 6)
    with pytest.raises(SnapshotError, match="the outcome of step 3 cannot be saved: JSON cannot hold"):
        run.snapshot(tmp_path / "a.snap")
    assert list(tmp_path.iterdir()) == []


class Numbers(Phase[Walk, dict[int, tuple[float, ...]]]):
    """An outcome that only its declared type brings back as it was."""

    def run(self, context: Walk) -> dict[int, tuple[float, ...]]:
        return {7: (1.5, 2.0)}

    def apply(self, context: Walk, outcome: dict[int, tuple[float, ...]]) -> None:
        context.bonus = round(sum(outcome[7]))
        assert isinstance(outcome[7], tuple)


def test_an_outcome_comes_back_in_the_type_that_its_phase_declares(tmp_path: Path) -> None:
    machine = walk(Draw()).insert(Numbers(), between=("note", "draw"))
    run = Run(machine, Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    run.start()
    played = Run(machine, Walk())
    assert play(Journal.open(tmp_path / "a.jsonl"), played) is None
    assert played.context == run.context


def test_an_outcome_of_another_type_is_no_record_of_this_machine(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl")

    class Words(Draw, Phase[Walk, str]):  # type: ignore[misc]
        pass

    with pytest.raises(JournalError, match=r"a.jsonl, line 2: 864 is no outcome of 'draw': Expected `str`, got `int`"):
        play(Journal.open(tmp_path / "a.jsonl"), Run(walk(Words("draw")), Walk()))
