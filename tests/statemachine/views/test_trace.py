"""A trace follows the rules of Chrome's event format, tells what a journal tells, and streams."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from statemachine_recorded import Walk, machine, record

from statemachine import Journal, JournalError, JournalWriter, Run
from statemachine.views.trace import Extra, write_trace

pytestmark = pytest.mark.slow


def trace_of(path: Path, details: Any = None) -> list[dict[str, Any]]:
    buffer = io.BytesIO()
    count = write_trace(Journal.open(path), buffer, details)
    value = json.loads(buffer.getvalue())
    assert value["displayTimeUnit"] in ("ms", "ns")
    assert len(value["traceEvents"]) == count
    return value["traceEvents"]


def check_format(events: list[dict[str, Any]]) -> None:
    """The rules of the Trace Event Format for the kinds of events that there are."""
    named, then, busy_until = set(), 0.0, {}
    for event in events:
        assert event["ph"] in ("X", "M", "C", "i")
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            kind = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}[event["name"]]
            assert list(event["args"]) == [kind]
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
            continue
        assert (event["pid"], event["tid"]) in named, "a track that was never named"
        assert event["ts"] >= then, "time goes on"
        then = event["ts"]
        if event["ph"] == "X":
            assert event["dur"] >= 0
            track = event["pid"], event["tid"]
            assert event["ts"] >= busy_until.get(track, 0) - 1e-6, "slices of one track overlap"
            busy_until[track] = event["ts"] + event["dur"]
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int | float) for value in event["args"].values())
        elif event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")


def slices(events: list[dict[str, Any]], tid: int = 0) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["tid"] == tid]


def marks(events: list[dict[str, Any]]) -> list[str]:
    return [event["name"] for event in events if event["ph"] == "i"]


def test_a_slice_for_every_step_and_microseconds(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run = record(path)
    events = trace_of(path)
    check_format(events)
    steps = list(run.steps())
    found = slices(events)
    assert [event["name"] for event in found] == [step.phase for step in steps]
    assert [event["args"]["step"] for event in found] == [step.number for step in steps]
    assert found[0]["args"]["guards"] == dict(steps[0].guards)
    assert found[0]["args"]["outcome"] == steps[0].outcome
    assert found[0]["args"]["transition"].startswith("draw -> ")
    assert sum(event["dur"] for event in found) == pytest.approx(sum(step.elapsed_ns for step in steps) / 1e3)
    assert found[-1]["ts"] + found[-1]["dur"] == pytest.approx(sum(step.elapsed_ns for step in steps) / 1e3)
    assert marks(events) == ["end: done"]


def test_marks_stand_where_things_happened(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run = Run(machine, Walk(limit=50), journal=JournalWriter(path), keep=True)
    run.until(lambda run: run.step_count == 10)
    run.edit("bonus", amount=3)
    run.until(lambda run: run.step_count == 20)
    run.goto(15)
    run.until(lambda run: run.step_count == 25)
    run.signal("stop")
    run.close()
    events = trace_of(path)
    check_format(events)
    assert [event["args"]["step"] for event in slices(events)] == list(range(25))
    assert [mark for mark in marks(events) if mark != "pause"] == [
        "edit bonus", "back from step 20", "signal stop", "end: cancelled"
    ]  # fmt: skip
    assert "pause" in marks(events)
    back = next(event for event in events if event["name"] == "back from step 20")
    assert back["args"] == {"step": 15}
    assert back["ts"] == slices(events)[15]["ts"]


def test_details_add_tracks_and_counters(tmp_path: Path) -> None:
    class Sums:
        tracks = ("drawn",)

        def __init__(self) -> None:
            self.sum = 0

        def step(self, record: Any) -> Extra:
            if record.p != "draw":
                return Extra()
            self.sum += record.o
            return Extra({0: {"number": record.o}}, {"sum": {"sum": self.sum}})

        def edit(self, record: Any) -> None: ...

    path = tmp_path / "run.jsonl"
    run = record(path)
    events = trace_of(path, Sums())
    check_format(events)
    assert [event["args"]["number"] for event in slices(events, 1)] == run.context.drawn
    counters = [event for event in events if event["ph"] == "C"]
    assert counters[-1]["args"] == {"sum": sum(run.context.drawn)}
    assert counters[0]["ts"] == pytest.approx(slices(events)[0]["dur"])


def test_a_damaged_journal_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "{broken\n", *lines[6:]]))
    with pytest.raises(JournalError, match="line 6"):
        trace_of(path)


def test_memory_does_not_grow_with_the_journal(tmp_path: Path) -> None:
    peaks = []
    for limit in (500, 50_000):
        path = tmp_path / f"{limit}.jsonl"
        record(path, limit=limit)
        with Path("/dev/null").open("wb") as nowhere:
            tracemalloc.start()
            write_trace(Journal.open(path), nowhere)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert path.stat().st_size > 3_000_000
    assert peaks[1] - peaks[0] < 100_000
