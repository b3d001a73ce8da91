"""phasewalk trace: a record as a file for trace viewers."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from statemachine_recorded import record

from statemachine import Journal

CORPUS = Path(__file__).parents[2] / "journals" / "schema1"


def events_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["traceEvents"]


def test_trace_has_a_track_for_each_row_and_counters(phasewalk: Command, batch_journal: Path) -> None:
    code, out, err = phasewalk("trace", str(batch_journal), "-o", "trace.json")
    assert (code, out) == (0, "")
    assert "ui.perfetto.dev" in err
    events = events_of(Path("trace.json"))
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["machine", "row 0", "row 1"]
    lengths = [event["args"] for event in events if event["name"] == "KV length"]
    prompts = lengths[1]
    assert lengths[0] == {"row 0": 0, "row 1": 0}
    assert lengths[-1] == {"row 0": prompts["row 0"] + 11, "row 1": prompts["row 1"] + 4}
    decodes = [event for event in events if event["ph"] == "X" and event["name"] == "decode"]
    assert [sum(event["tid"] == tid for event in decodes) for tid in (0, 1, 2)] == [11, 11, 4]
    tokens = [event["args"] for event in events if event.get("tid") == 1 and event["name"] == "check_stop"]
    assert len(tokens) == 12
    assert [args["step"] for args in tokens if args.get("forced")] == [tokens[4]["step"]]
    assert tokens[4]["token"] == 262
    assert tokens[-1]["finished"] == "length"
    speeds = [event["args"]["tokens/s"] for event in events if event["name"] == "tokens/s"]
    assert len(speeds) == 12
    assert all(speed > 0 for speed in speeds)
    assert "edit force" in [event["name"] for event in events if event["ph"] == "i"]
    assert phasewalk("trace", str(batch_journal))[1] == Path("trace.json").read_text()


@pytest.mark.parametrize("name", ["greedy", "batch", "sampled", "journey"])
def test_trace_reads_the_corpus(phasewalk: Command, name: str) -> None:
    assert phasewalk("trace", str(CORPUS / f"{name}.jsonl"), "-o", "trace.json")[0] == 0
    events = events_of(Path("trace.json"))
    ids = [event["args"]["token"] for event in events if "token" in event.get("args", {}) and event["tid"] == 1]
    steps = [
        record
        for record in Journal.open(CORPUS / f"{name}.jsonl").timeline()
        if getattr(record, "p", "") == "check_stop"
    ]
    assert ids == [step.o[0] for step in steps][: len(ids)]
    assert ids


def test_trace_of_another_machine_has_the_machines_track_only(phasewalk: Command, tmp_path: Path) -> None:
    record(tmp_path / "walk.jsonl")
    assert phasewalk("trace", "walk.jsonl", "-o", "trace.json")[0] == 0
    names = [event["args"]["name"] for event in events_of(Path("trace.json")) if event["name"] == "thread_name"]
    assert names == ["machine"]


def test_a_damaged_journal_is_one_line_and_leaves_no_half_a_trace(phasewalk: Command, journal: Path) -> None:
    lines = journal.read_text().splitlines(keepends=True)
    Path("bad.jsonl").write_text("".join([*lines[:9], "{\n", *lines[10:]]))
    for command in ("trace", "report"):
        code, _, err = phasewalk(command, "bad.jsonl", "-o", "out")
        assert (code, err.count("\n")) == (1, 1)
        assert "line 10" in err
    assert sorted(path.name for path in Path().iterdir()) == ["bad.jsonl"]
