"""Records say what a choice was by its name and value, whatever its place in the table."""

from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from dispatch import TICKETS, Desk, Route, desk, machine, ready, record
from forging import forged, with_step
from hypothesis import strategies as st
from rule_checks import caught, hold_and_see

from statemachine import Choice, Journal, JournalError, Machine, Migration, Run, Status, play, restore, verify
from statemachine.record.snapshot import load
from statemachine.testing import coverage, machine_rules
from statemachine.views.trace import write_trace


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path / "a.jsonl")
    return tmp_path / "a.jsonl"


def test_a_journal_verifies_and_plays(recorded: Path) -> None:
    journal = Journal.open(recorded)
    assert journal.header.machine.guards == {"plan": ("route", "paid")}
    assert journal.header.machine.choices == {"plan": {"route": ("tools", "search", "reply", "stop")}}
    assert verify(journal, ready()).verified
    run = ready()
    assert play(journal, run) is None
    assert run.status is Status.DONE
    assert next(run.steps()).guards == {"route": "tools", "paid": False}


def test_rewind_and_fork(tmp_path: Path) -> None:
    run = record(tmp_path / "a.jsonl")
    steps = list(run.steps())
    run.goto(3)
    fork = run.fork(at=2)
    for each in (run, fork):
        each.resume()
        assert list(each.steps()) == steps


def test_a_snapshot_goes_on(tmp_path: Path) -> None:
    run = ready()
    run.until(lambda run: run.step_count == 3)
    for history in (True, False):
        run.snapshot(tmp_path / f"{history}.snap", history=history)
        other = ready()
        assert restore(load(tmp_path / f"{history}.snap"), other) is None
        other.resume()
        assert other.context.done == ["reply", "search", "reply", "search"]


def grown(*values: str) -> Machine[Desk]:
    return desk(Choice("route", values, lambda context: str(context.route)))


@pytest.mark.parametrize(
    "values", [("stop", "reply", "search", "tools"), ("tools", "wait", "search", "reply", "later", "stop")]
)
def test_a_choice_that_grew_or_was_reordered_reads_old_records(recorded: Path, values: tuple[str, ...]) -> None:
    verdict = verify(Journal.open(recorded), Run(grown(*values), Desk([*TICKETS])))
    assert verdict.verified
    assert f"choice new: route of plan ({', '.join(values)})" in verdict.differences
    assert "choice gone: route of plan (tools, search, reply, stop)" in verdict.differences


def test_a_value_that_comes_out_otherwise_is_told_by_name(recorded: Path, tmp_path: Path) -> None:
    forged(recorded, tmp_path / "b.jsonl", with_step(2, g=0))  # it was search: the row number 1
    divergence = verify(Journal.open(tmp_path / "b.jsonl"), ready()).divergence
    assert divergence is not None
    assert (divergence.step, divergence.field) == (2, "guards")
    assert divergence.recorded == {"route": "tools", "paid": False}
    assert divergence.replayed == {"route": "search", "paid": False}


def test_a_renamed_choice_is_migrated(recorded: Path) -> None:
    renamed = desk(Choice("way", Route, lambda context: context.route))
    newer = Machine("desk", renamed.start, renamed.transitions, version=2,
                    migrations=[Migration(1, guards={"route": "way"})])  # fmt: skip
    assert verify(Journal.open(recorded), Run(newer, Desk([*TICKETS]))).verified


def of_choices(choices: Any, **guards: Any) -> Any:
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["machine"]["choices"] = choices
        records[0]["machine"]["guards"].update(guards)

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (with_step(0, g=8), "has case 8 of the guards of phase 'plan', which have 8"),
        (with_step(1, g=1), "has case 1 of the guards of phase 'reply', which have 1"),
        (with_step(0, g=-1), "Expected `int` >= 0"),
        (of_choices({"plan": {"route": []}}), "a choice 'route' with no values, or one twice"),
        (of_choices({"plan": {"route": ["a", "a"]}}), "a choice 'route' with no values, or one twice"),
        (of_choices({"plan": {"other": ["a"]}}), "has values for 'other', by which it does not choose"),
        (of_choices({"reply": {"route": ["a"]}}), "has values for 'route', by which it does not choose"),
        (of_choices({"nowhere": {"route": ["a"]}}), "its table names ['nowhere'], which are none of its phases"),
        (of_choices({"plan": {"route": ["a\n", "b"]}}), "holds control characters"),
        (of_choices({"plan": {"route": [*map(str, range(2**16))]}}), "with 131072 cases, at most 65536 can be"),
        (of_choices({}, plan=["paid", "paid"]), "has two guards or choices of one name"),
        (of_choices({"plan": {"route": [1, 2]}}), "Expected `str`"),
    ],
)
def test_a_forged_record_is_refused_by_name(recorded: Path, tmp_path: Path, change: Any, complaint: str) -> None:
    with pytest.raises(JournalError) as refused:
        verify(Journal.open(forged(recorded, tmp_path / "b.jsonl", change)), ready())
    assert complaint in str(refused.value)


def test_a_recorded_value_that_is_none_of_the_machines_is_told(recorded: Path, tmp_path: Path) -> None:
    forged(recorded, tmp_path / "b.jsonl", of_choices({"plan": {"route": ["x", "search", "reply", "stop"]}}))
    divergence = verify(Journal.open(tmp_path / "b.jsonl"), ready()).divergence
    assert divergence is not None
    assert divergence.recorded == {"route": "x", "paid": False}


def test_traces_and_coverage_say_it_in_words(recorded: Path) -> None:
    trace = BytesIO()
    write_trace(Journal.open(recorded), trace)
    assert b'"guards":{"route":"search","paid":false}' in trace.getvalue()
    found = coverage(Journal.open(recorded), machine)
    assert found.rows["plan", "route = search & ~paid"] == 2
    assert "plan: route = stop & paid" in found.never["rows"]


def desks() -> st.SearchStrategy[Desk]:
    return st.builds(Desk, st.lists(st.sampled_from(Route), max_size=6), st.booleans())


def test_the_rules_hold_and_see_every_value() -> None:
    rules = machine_rules(machine, desks())
    hold_and_see(rules, "rows")


def test_the_rules_catch_a_choice_that_is_none_or_not_pure() -> None:
    coin = cycle(Route)
    flips: Choice[Desk] = Choice("route", Route, lambda context: next(coin))
    assert "for the same context: a guard must be pure" in caught(machine_rules(desk(flips), desks()))
    missing: Choice[Desk] = Choice("route", Route, lambda context: "nowhere")
    assert "choice 'route' gave 'nowhere'" in caught(machine_rules(desk(missing), desks()))
