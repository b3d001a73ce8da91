"""Signals in records: journalled with what they carry, replayed, saved, recovered, translated; and forged ones."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from desk import Approval, Draft, Text, desk, machine
from forging import forged

from statemachine import (
    Guard,
    Journal,
    JournalError,
    JournalWriter,
    Migration,
    Run,
    Signal,
    Status,
    play,
    recover,
    restore,
    verify,
)
from statemachine.execution.timeline import Event
from statemachine.record.records import PauseRecord, RefusedRecord, SignalRecord, SignalRow
from statemachine.record.snapshot import load
from statemachine.testing import coverage
from statemachine.views.tally import Tally
from statemachine.views.trace import write_trace

REASON = "PermissionError: the thief approves nothing"


def recorded(path: Path, **options: Any) -> Run[Text]:
    """A run with an edit, a signal that was refused for what it carried, one that was taken, one that was left."""
    run = Run(machine, Text(), journal=JournalWriter(path), **options)
    run.signal("approve", Approval("the thief"), wait=True)
    assert run.start() is Status.WAITING
    run.edit("correct", drafts=7)
    run.edit("correct", drafts=2)
    run.signal("approve", Approval("Ada", 5), wait=True)
    run.signal("approve", Approval("late"), wait=True)
    run.edit("correct", drafts=4)
    assert run.resume() is Status.DONE
    return run


@pytest.fixture(name="journal", scope="module")
def journal_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("desk") / "a.jsonl"
    recorded(path)
    return path


def test_each_stands_in_the_journal_with_what_it_carried(journal: Path) -> None:
    records = list(Journal.open(journal).records())
    signals = [record for record in records if isinstance(record, SignalRecord | RefusedRecord)]
    assert signals == [
        RefusedRecord(n=4, name="approve", o={"by": "the thief", "stars": 3}, why=REASON),
        SignalRecord(n=4, name="approve", o={"by": "Ada", "stars": 5}),
        RefusedRecord(
            n=5, name="approve", o={"by": "late", "stars": 3}, why="the run was done before it could be taken"
        ),
    ]
    pending = [record.sent for record in records if isinstance(record, PauseRecord)]
    assert [("approve", {"by": "the thief", "stars": 3})] in pending
    rows = Journal.open(journal).header.machine.signals
    assert rows[0] == SignalRow("hurry", "review", ("draft",), "begun")
    assert rows[2] == SignalRow("approve", "publish", ("review",), "written", "Approval")
    assert Journal.open(journal).header.machine.edit_sources == {"correct": ("review",)}


@pytest.mark.parametrize("interpreter", ["compiled", "transitions"])
def test_it_plays_and_verifies(journal: Path, interpreter: Any, tmp_path: Path) -> None:
    run = recorded(tmp_path / "b.jsonl", interpreter=interpreter)
    played = Run(machine, Text(), interpreter=interpreter)
    assert play(Journal.open(journal), played) is None
    assert (played.context, played.events, played.status) == (run.context, run.events, Status.DONE)
    assert played.events[0] == Event(4, "refused", "approve", Approval("the thief"), REASON)
    assert verify(Journal.open(journal), Run(machine, Text(), interpreter=interpreter)).verified


def test_what_played_it_may_record_it_too(journal: Path, tmp_path: Path) -> None:
    player = Run(machine, Text(), keep=True, journal=JournalWriter(tmp_path / "b.jsonl"))
    assert play(Journal.open(journal), player) is None
    player.close()
    again = Run(machine, Text())
    assert play(Journal.open(tmp_path / "b.jsonl"), again) is None
    assert again.events == player.events


def test_what_waited_on_a_way_that_was_given_up_is_not_refused_by_a_replay(tmp_path: Path) -> None:
    run = Run(machine, Text(), journal=JournalWriter(tmp_path / "a.jsonl"), keep=True)
    run.step()
    run.signal("approve", Approval("Ada"), wait=True)
    assert run.resume() is Status.DONE
    run.goto(3)
    run.signal("drop")
    run.close()
    again = Run(machine, Text())
    assert play(Journal.open(tmp_path / "a.jsonl"), again) is None
    assert again.events == run.events == [Event(3, "signal", "drop")]


def test_views_count_and_mark_what_was_refused(journal: Path) -> None:
    opened = Journal.open(journal)
    tally = Tally.of(opened)
    assert tally.refused == {"approve": 2}
    assert [(way.name, way.source, way.target, count) for way, count in tally.signals.items()] == [
        ("approve", "review", "publish", 1)
    ]
    file = BytesIO()
    write_trace(opened, file)
    marks = [event for event in msgspec.json.decode(file.getvalue())["traceEvents"] if "signal" in event["name"]]
    assert [(mark["name"], mark["args"]) for mark in marks] == [
        ("refused signal approve", {"step": 4, "why": REASON}),
        ("signal approve", {"step": 4, "payload": {"by": "Ada", "stars": 5}}),
        ("refused signal approve", {"step": 5, "why": "the run was done before it could be taken"}),
    ]
    found = coverage(opened, machine)
    assert (found.refused, found.signals["approve"]) == ({"approve": 2}, 1)
    assert "refused: approve, 2 times" in str(found)
    played = Run(machine, Text(), keep=True)
    play(opened, played)
    assert coverage(played, machine).refused == {"approve": 2}


def test_one_name_is_counted_by_where_it_led(tmp_path: Path) -> None:
    run = Run(machine, Text(), journal=JournalWriter(tmp_path / "a.jsonl"))
    run.step()
    run.signal("hurry")
    run.signal("hurry")
    run.resume()
    ways = Tally.of(Journal.open(tmp_path / "a.jsonl")).signals
    assert [(way.source, way.target) for way in ways] == [("draft", "review"), ("review", "publish")]


# --- saved, killed, recovered -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [True, False])
def test_a_snapshot_holds_what_waits_with_what_it_carries(tmp_path: Path, history: bool) -> None:
    run = Run(machine, Text())
    run.signal("approve", Approval("Ada"), wait=True)
    run.signal("hurry", wait=True)
    run.snapshot(tmp_path / "a.snap", history=history)
    again = Run(machine, Text())
    assert restore(load(tmp_path / "a.snap"), again) is None
    assert again.sent == run.sent == (("approve", Approval("Ada")), ("hurry", None))
    again.step()
    assert (again.phase_name, again.pending) == ("review", ("approve",))


def test_a_snapshot_holds_what_was_taken_and_refused(tmp_path: Path) -> None:
    run = Run(machine, Text(length=1))
    run.signal("approve", Approval("the thief"), wait=True)
    run.start()
    run.signal("approve", Approval("Ada"))
    run.snapshot(tmp_path / "a.snap")
    again = Run(machine, Text(length=1))
    assert restore(load(tmp_path / "a.snap"), again) is None
    assert (again.events, again.context) == (run.events, run.context)
    assert [event.kind for event in again.events] == ["refused", "signal"]


KILLED = """
import os, signal, sys
from desk import Approval, Text, machine
from statemachine import JournalWriter, Run

run = Run(machine, Text(), journal=JournalWriter(sys.argv[1]))
run.signal("approve", Approval("Ada"), wait=True)
run.signal("hurry", wait=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_what_waited_still_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, path], env={"PYTHONPATH": ":".join(sys.path)}, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    run = Run(machine, Text())
    assert recover(path, run) is None
    assert run.sent == (("approve", Approval("Ada")), ("hurry", None))
    run.resume()
    assert run.status is Status.WAITING  # after one draft: too early to be approved
    run.answer("good")
    assert run.resume() is Status.DONE
    assert verify(Journal.open(path), Run(machine, Text())).verified
    again = Run(machine, Text())
    assert play(Journal.open(path), again) is None
    assert again.events == run.events


def cut_after(path: Path, other: Path, last: Callable[[dict[str, Any]], bool]) -> Path:
    """A copy of a journal as a kill would have left it, right after a record."""

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return records[: 1 + next(n for n, record in enumerate(records) if last(record))]

    return forged(path, other, change)


def test_killed_before_it_was_taken_a_signal_is_taken_and_recorded_when_it_is_recovered(tmp_path: Path) -> None:
    run = Run(machine, Text(), journal=JournalWriter(tmp_path / "a.jsonl"))
    run.start()
    run.edit("correct", drafts=1)
    run.signal("approve", Approval("Ada"), wait=True)
    run.edit("correct", drafts=4)
    path = cut_after(
        tmp_path / "a.jsonl", tmp_path / "b.jsonl", lambda record: record["type"] == "edit" and record["o"] == 4
    )
    again = Run(machine, Text())
    assert recover(path, again) is None
    assert (again.phase_name, again.context.approvals) == ("publish", [Approval("Ada")])
    again.resume()
    assert verify(Journal.open(path), Run(machine, Text())).verified


def test_killed_at_its_very_end_what_was_left_is_refused_when_it_is_recovered(tmp_path: Path) -> None:
    recorded(tmp_path / "a.jsonl")
    path = cut_after(
        tmp_path / "a.jsonl", tmp_path / "b.jsonl", lambda record: record["type"] == "s" and record["p"] == "publish"
    )
    again = Run(machine, Text())
    assert recover(path, again) is None
    assert again.status is Status.DONE
    assert [event.outcome.by for event in again.events if event.kind == "refused"] == ["the thief", "late"]
    verdict = verify(Journal.open(path), Run(machine, Text()))
    assert (verdict.verified, verdict.ended) == (True, "done")
    last = list(Journal.open(path).records())[-2:]
    assert [type(record).__name__ for record in last] == ["RefusedRecord", "EndRecord"]


def test_a_run_that_fails_records_what_waits(tmp_path: Path) -> None:
    class Broken(Draft):
        def run(self, context: Text) -> int:
            if context.drafts == 1:
                run.signal("approve", Approval("Ada"))
                raise RuntimeError
            return super().run(context)

    path = tmp_path / "a.jsonl"
    run = Run(desk(Broken("draft")), Text(), journal=JournalWriter(path))
    with pytest.raises(Exception, match="RuntimeError"):
        run.start()
    run.close()
    again = Run(machine, Text())
    assert recover(path, again) is None
    assert again.sent == (("approve", Approval("Ada")),)
    assert again.resume() is Status.DONE


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_migration_reads_what_was_carried_taken_refused_or_waiting(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Grade:
        names: list[str]

    class Pass(Signal[Text, Grade]):
        def apply(self, context: Text, payload: Grade) -> None:
            context.notes.extend(payload.names)
            if "the thief" in payload.names:
                raise PermissionError

    newer = replace(
        machine,
        signals=[*(s for s in machine.signals if s.name != "approve"),
                 Pass("pass", to="publish", sources=("review",), when=machine.signals[2].when)],
        version=2,
        migrations=[
            Migration(1, signals={"approve": "pass"}, outcomes={"approve": lambda old: {"names": [old["by"]]}})
        ],
    )  # fmt: skip
    recorded(tmp_path / "a.jsonl")
    run = Run(newer, Text())
    assert play(Journal.open(tmp_path / "a.jsonl"), run) is None
    assert run.context.notes == ["Ada"]
    assert [event.outcome for event in run.events if event.kind == "refused"] == [Grade(["the thief"]), Grade(["late"])]
    old = Run(machine, Text())
    old.signal("approve", Approval("Ada"), wait=True)
    old.snapshot(tmp_path / "a.snap")
    new = Run(newer, Text())
    assert restore(load(tmp_path / "a.snap"), new) is None
    assert new.sent == (("pass", Grade(["Ada"])),)


def test_a_replay_tells_what_changed_in_the_table(journal: Path) -> None:
    changed = replace(
        machine, signals=[*machine.signals[:2], *machine.signals[3:]], edits=[type(machine.edits[0])("x")]
    )
    found = play(Journal.open(journal), Run(changed, Text()))
    assert found is not None
    assert (found.field, found.recorded) == ("signal", "approve")
    assert "machine 'desk' has no signal 'approve'; there are: 'hurry', 'drop'" in found.replayed
    assert "signal gone: approve(Approval) to publish from review when written" in found.causes
    assert "edit gone: correct at review" in found.causes


def test_a_guard_that_holds_no_more_is_a_divergence(journal: Path) -> None:
    never = Guard[Text]("written", lambda context: False)
    changed = [replace(s, when=never) if s.name == "approve" else s for s in machine.signals]
    found = play(Journal.open(journal), Run(replace(machine, signals=changed), Text()))
    assert found is not None
    assert (found.field, found.recorded) == ("signal", f"approve, refused: {REASON}")
    assert "lets wait 'approve' at 'review'" in found.replayed


# --- forged records ---------------------------------------------------------------------------------------------------


def of_type(records: list[dict[str, Any]], kind: str, number: int = 0) -> dict[str, Any]:
    return [record for record in records if record["type"] == kind][number]


def at_start(**fields: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """A record before the first step."""

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        place = next(n for n, record in enumerate(records) if record["type"] == "s")
        return [*records[:place], {"n": 0, **fields}, *records[place:]]

    return change


UNUSABLE = {
    "a payload of another type": (
        lambda records: of_type(records, "signal").update(o={"by": 3}),
        r"line \d+: \{'by': 3\} is no payload of signal 'approve': Expected `str`",
    ),
    "no payload": (
        lambda records: of_type(records, "signal").pop("o") and None, "None is no payload of signal 'approve'"
    ),
    "a payload where there is none": (at_start(type="signal", name="drop", o=3), "3 is no payload of signal 'drop'"),
    "a payload that cannot be entered": (
        lambda records: of_type(records, "signal").update(o={"by": "the thief"}),
        r"signal 'approve' cannot enter .* here: PermissionError",
    ),
    "a refused payload of another type": (
        lambda records: of_type(records, "refused").update(o=[]), r"\[\] is no payload of signal 'approve'"
    ),
    "an unknown signal": (
        lambda records: of_type(records, "signal").update(name="aprove"), "names signal 'aprove', which the header"
    ),
    "an unknown refused one": (
        lambda records: of_type(records, "refused").update(name="aprove"), "names signal 'aprove', which the header"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_forged_signal_is_refused_by_name(name: str, journal: Path, tmp_path: Path) -> None:
    change, complaint = UNUSABLE[name]
    path = forged(journal, tmp_path / "b.jsonl", change)  # type: ignore[arg-type]
    for read in (play, verify):
        with pytest.raises(JournalError, match=complaint):
            read(Journal.open(path), Run(machine, Text()))


DIVERGENT = {
    "at a phase that does not take it": (
        at_start(type="signal", name="approve", o={"by": "Ada"}),
        ("signal", "approve", "is taken only at 'review'"),
    ),
    "while its guard does not hold": (
        at_start(type="signal", name="hurry"), ("signal", "hurry", "takes 'hurry' at 'draft' only when begun")
    ),
    "refused, but it could be taken": (
        at_start(type="refused", name="drop", why="so"), ("signal", "drop, refused: so", "takes 'drop' at 'draft'")
    ),
    "refused, but it would have waited": (
        at_start(type="refused", name="hurry", why="so"),
        ("signal", "hurry, refused: so", "lets wait 'hurry' at 'draft'"),
    ),
    "refused for what can be entered": (
        lambda records: of_type(records, "refused").update(o={"by": "Ada"}),
        ("signal", f"approve, refused: {REASON}", "takes 'approve' at 'review'"),
    ),
    "an edit elsewhere": (
        at_start(type="edit", name="correct", o=3), ("edit", "correct", "edit 'correct' may be made only at 'review'")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIVERGENT)
def test_a_signal_or_edit_that_could_not_be_is_a_divergence(name: str, journal: Path, tmp_path: Path) -> None:
    change, (field, said, found) = DIVERGENT[name]
    path = forged(journal, tmp_path / "b.jsonl", change)  # type: ignore[arg-type]
    for divergence in (
        play(Journal.open(path), Run(machine, Text())), verify(Journal.open(path), Run(machine, Text())).divergence
    ):  # fmt: skip
        assert divergence is not None
        assert (divergence.field, divergence.recorded) == (field, said)
        assert found in divergence.replayed


def test_what_waits_with_a_payload_of_another_type_is_refused(tmp_path: Path) -> None:
    run = Run(machine, Text(), journal=JournalWriter(tmp_path / "a.jsonl"))
    run.signal("approve", Approval("Ada"), wait=True)
    run.close()
    for payload, complaint in ((["approve", 3], "3 is no payload"), ("approve", "None is no payload")):
        path = forged(
            tmp_path / "a.jsonl", tmp_path / "b.jsonl",
            lambda records, payload=payload: of_type(records, "pause", -1).update(pending=[payload]),  # type: ignore[misc]
        )  # fmt: skip
        with pytest.raises(JournalError, match=f"line 2: {complaint} of signal 'approve'"):
            play(Journal.open(path), Run(machine, Text()))
        with pytest.raises(JournalError, match="of signal 'approve'"):
            recover(path, Run(machine, Text()))


def test_a_header_whose_signals_join_no_phases_is_refused(journal: Path, tmp_path: Path) -> None:
    for change in (
        lambda header: header["machine"]["signals"][0].__setitem__(1, "nowhere"),
        lambda header: header["machine"]["edit_sources"].update(correct=["nowhere"]),
    ):
        path = forged(journal, tmp_path / "b.jsonl", lambda records, change=change: change(records[0]))
        with pytest.raises(JournalError, match=r"its table names \['nowhere'\], which are none of its phases"):
            Journal.open(path)


def test_a_payload_that_no_record_can_hold_is_refused_when_it_was_sent() -> None:
    class Anything(Signal[Text, Any]):
        def apply(self, context: Text, payload: Any) -> None: ...

    run = Run(desk(signals=[Anything("any", to="draft")]), Text())
    with pytest.raises(ValueError, match="JSON cannot hold"):
        run.signal("any", float("inf"))
    with pytest.raises(ValueError, match="JSON cannot hold"):
        run.signal("any", object(), wait=True)
