"""Journals survive kills, full disks and damage, and say what is wrong with them."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statemachine_recorded import Walk, fresh, machine, record

from statemachine import (
    Journal,
    JournalError,
    JournalWriter,
    OutcomeError,
    Phase,
    PhaseError,
    Run,
    Status,
    play,
    verify,
)
from statemachine.record.records import EndRecord, ErrorRecord, PauseRecord, SignalRecord, StepRecord


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_journal_holds_header_steps_and_end(tmp_path: Path) -> None:
    run = record(tmp_path / "a.jsonl", digest_every=3)
    journal = Journal.open(tmp_path / "a.jsonl")
    header = journal.header
    assert header.machine.fingerprint == machine.fingerprint
    assert header.machine.guards == {"draw": ("odd", "far_enough")}
    assert header.request == {"seed": 0, "limit": 20}
    assert {"python", "platform", "phasewalk", "transitions"} <= set(header.environment)
    *steps, end = journal.records()
    assert all(isinstance(step, StepRecord) for step in steps)
    assert [(step.p, step.o) for step in steps] == [(step.phase, step.outcome) for step in run.steps()]
    assert [machine.transitions[step.e].target for step in steps] == [machine.phases[s.target] for s in run.steps()]
    assert end == EndRecord(n=len(steps), status="done")
    digests = [step.d for step in steps if step.p == "draw"]
    assert digests[::3] == [[n + 1] for n in range(0, 20, 3)]
    assert not any(digests[1::3] + digests[2::3])
    assert verify(journal, fresh(tmp_path / "a.jsonl")).verified


def test_a_step_takes_at_most_100_bytes(tmp_path: Path) -> None:
    run = record(tmp_path / "a.jsonl", limit=5000)
    body = (tmp_path / "a.jsonl").read_bytes().split(b"\n", 1)[1]
    assert len(body) / run.step_count < 100


def test_it_is_on_disk_at_every_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=30), journal=JournalWriter(path))
    assert path.read_bytes() == b""
    run.until(lambda run: run.step_count == 7)
    records = list(Journal.open(path).records())
    assert [record.n for record in records] == [*range(7), 7]
    assert isinstance(records[-1], PauseRecord)
    run.step()
    assert sum(isinstance(record, StepRecord) for record in Journal.open(path).records()) == 8
    run.signal("stop")
    assert list(Journal.open(path).records())[-2:] == [
        SignalRecord(n=8, name="stop"),
        EndRecord(n=8, status="cancelled"),
    ]


def test_it_is_never_far_behind_while_running(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    seen: list[int] = []

    def watch(run: Run[Walk]) -> bool:
        time.sleep(0.004)
        if run.step_count % 20 == 0:
            seen.append(run.step_count - len(path.read_bytes().splitlines()))
        return run.step_count >= 120

    Run(machine, Walk(limit=1000), journal=JournalWriter(path)).until(watch)
    assert max(seen[1:]) <= 20  # 50 ms are about 12 steps of 4 ms


def test_signals_edits_errors_and_journeys_stand_where_they_took_effect(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=8), journal=JournalWriter(path), keep=True, request={"seed": 0, "limit": 8})
    run.edit("bonus", amount=3)
    run.until(lambda run: run.step_count == 4)
    with pytest.raises(ValueError, match="amount is a positive number, not -1"):
        run.edit("bonus", amount=-1)
    run.edit("bonus", amount=1)
    run.resume()
    run.goto(6)
    run.edit("bonus", amount=100)
    run.resume()
    run.close()
    kinds = [value["type"] for value in lines(path)]
    assert kinds.count("goto") == 1
    assert kinds.count("end") == 2
    journal = Journal.open(path)
    replayed, played = fresh(path), fresh(path)
    assert verify(journal, replayed).verified
    assert play(journal, played) is None
    assert replayed.context == played.context == run.context
    assert list(played.steps()) == list(run.steps())
    assert [step.elapsed_ns for step in played.steps()] == [step.elapsed_ns for step in run.steps()]
    assert played.events == run.events


def test_a_failed_run_is_recorded_and_fails_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(PhaseError):
        record(path, limit=-1, seed="x" * 3)  # type: ignore[arg-type]
    *_, error, end = Journal.open(path).records()
    assert isinstance(error, ErrorRecord)
    assert (error.n, error.p, error.exception) == (0, "draw", "TypeError")
    assert end == EndRecord(n=0, status="failed")
    assert verify(Journal.open(path), fresh(path)).verified


def test_a_failure_that_does_not_come_again_is_a_divergence(tmp_path: Path) -> None:
    mended = False

    class Moody(Phase[Walk, None]):
        def run(self, context: Walk) -> None:
            if not mended:
                raise OSError("not today")

    moody = machine.insert(Moody(), between=("note", "draw"))
    with pytest.raises(PhaseError):
        Run(moody, Walk(), journal=JournalWriter(tmp_path / "a.jsonl")).start()
    mended = True
    verdict = verify(Journal.open(tmp_path / "a.jsonl"), Run(moody, Walk()))
    assert verdict.divergence is not None
    assert not verdict.verified
    assert (verdict.divergence.phase, verdict.divergence.field) == ("moody", "error")
    assert (verdict.divergence.recorded, verdict.divergence.replayed) == ("OSError: not today", "nothing")


def test_killed_at_any_moment_it_loses_at_most_the_last_chunk(tmp_path: Path) -> None:
    for attempt in range(4):
        path = tmp_path / f"{attempt}.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-m", "statemachine_recorded", str(path)], cwd=Path(__file__).parents[1]
        )
        while not path.exists() or path.stat().st_size < 100_000:
            time.sleep(0.002)
        time.sleep(0.03 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        journal = Journal.open(path)
        steps = sum(1 for _ in journal.records())
        assert steps > 1000
        journal = Journal.open(path, repair=True)
        assert path.read_bytes().endswith(b"\n")
        assert Journal.open(path).torn == 0
        assert sum(1 for _ in journal.records()) == steps


def test_a_journal_cut_at_any_byte_opens_or_says_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record(path, limit=4)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    cut = tmp_path / "cut.jsonl"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        if length < head:
            with pytest.raises(JournalError, match=r"cut.jsonl is no journal"):
                Journal.open(cut)
            continue
        journal = Journal.open(cut)
        assert journal.torn == length - whole.rfind(b"\n", 0, length) - 1
        assert len(list(journal.records())) == whole[:length].count(b"\n") - 1
        verdict = verify(journal, fresh(cut))
        assert verdict.divergence is None
        assert verdict.verified is (length == len(whole))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_in_the_middle_is_found_and_its_line_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.jsonl"
    record(path, limit=6)
    whole = path.read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(1, len(whole) - 2))
    kind = data.draw(
        st.sampled_from(["drop", "double", "garble", "unknown kind", "unknown field", "phase", "transition"])
    )
    line = whole[number]
    whole[number] = {
        "drop": b"",
        "double": line + line,
        "garble": line[:5] + b"\xff\xfe" + line[7:],
        "unknown kind": line.replace(b'"type":"s"', b'"type":"zzz"'),
        "unknown field": line.replace(b'"type"', b'"x":1,"type"'),
        "phase": line.replace(b'"p":"', b'"p":"no_'),
        "transition": line.replace(b'"e":', b'"e":9'),
    }[kind]
    path.write_bytes(b"".join(whole))
    with pytest.raises(JournalError, match=rf"a.jsonl, line {number + 1 + (kind == 'double')}: "):
        list(Journal.open(path).records())


def test_what_is_no_journal_or_too_new_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(JournalError, match="cannot be read: No such file"):
        Journal.open(path)
    for content in (b"", b"hello\n", b"{}\n", b"[1]\n", b'{"type":"s","n":0,"p":"x","e":0}\n', b"\x00" * 100):
        path.write_bytes(content)
        with pytest.raises(JournalError, match="is no journal"):
            Journal.open(path)
    record(tmp_path / "b.jsonl")
    text = (tmp_path / "b.jsonl").read_text()
    path.write_text(text.replace('"schema":2', '"schema":3', 1))
    with pytest.raises(JournalError, match=r"has schema 3, but this version reads schema 1 to 2; upgrade phasewalk"):
        Journal.open(path)


def test_a_journal_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("precious")
    with pytest.raises(JournalError, match="exists already"):
        JournalWriter(path)
    assert path.read_text() == "precious"
    with pytest.raises(JournalError, match="cannot be made"):
        JournalWriter(tmp_path / "no" / "such" / "folder.jsonl")


def test_an_outcome_that_no_journal_can_hold_names_its_phase(tmp_path: Path) -> None:
    class Odd(type(machine.start)):  # type: ignore[misc]
        def run(self, context: Walk) -> object:
            return object()

        def apply(self, context: Walk, outcome: object) -> None:
            pass

    other = machine.insert(Odd("odd_one"), between=("note", "draw"))
    run = Run(other, Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    with pytest.raises(PhaseError, match=r"in phase 'odd_one' at step \d+: OutcomeError: JSON cannot hold") as failure:
        run.start()
    assert isinstance(failure.value.__cause__, OutcomeError)
    assert run.status is Status.FAILED


FULL_DISK = """
import resource, sys, warnings
from pathlib import Path
from statemachine import JournalError, JournalWriter, Run
from statemachine_recorded import Walk, machine
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run = Run(machine, Walk(limit=5_000), journal=JournalWriter(sys.argv[1], on_full=sys.argv[2]))
warnings.simplefilter("always")
try:
    print(run.start())
except JournalError as error:
    print(run.status, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX does")
@pytest.mark.parametrize("on_full", ["fail", "drop"])
def test_a_full_disk_fails_the_run_or_by_choice_the_journal_only(tmp_path: Path, on_full: str) -> None:
    path = tmp_path / "a.jsonl"
    command = [sys.executable, "-c", FULL_DISK, str(path), on_full]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    if on_full == "fail":
        assert done.stdout.startswith(f"failed the journal {path} cannot be written: File too large; free some space")
    else:
        assert done.stdout == "done\n"
        assert "cannot be written: File too large; the run goes on without it" in done.stderr
    written = path.read_bytes()
    assert len(written) == 20_000
    assert Journal.open(path).torn == len(written) - (written.rfind(b"\n") + 1)
    assert sum(1 for _ in Journal.open(path).records()) > 100


def test_a_large_journal_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    record(tmp_path / "a.jsonl", limit=2)
    header = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)[0]
    with path.open("wb") as file:
        file.write(header)
        for start in range(0, 400_000, 1000):
            file.write(
                b"".join(
                    b'{"type":"s","n":%d,"p":"draw","e":1,"o":%d,"t":123456}\n' % (n, n)
                    for n in range(start, start + 1000)
                )
            )
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    count = sum(1 for _ in Journal.open(path).timeline())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400_000
    assert peak < 1_000_000
