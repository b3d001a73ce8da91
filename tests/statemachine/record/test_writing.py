"""Journals are on disk when they say so, and lose no more than they say."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_walk import WAYS, killed
from statemachine_recorded import Draw, Walk, draw, fresh, machine, record, walk

from statemachine import Journal, JournalError, JournalWriter, Run, Status, verify
from statemachine.execution import lifecycle, loop
from statemachine.record.records import EndRecord, PauseRecord, SignalRecord, StepRecord

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
SLACK_NS = 60_000_000  # 50 ms, one step and the time that it takes to write


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


def test_it_is_never_far_behind_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now, behind = tmp_path / "a.jsonl", [0], []
    for module in (loop, lifecycle):  # a clock by which each step takes 4 ms
        monkeypatch.setattr(module, "perf_counter_ns", lambda: now[0])

    def watch(run: Run[Walk]) -> bool:
        now[0] += 4_000_000
        written = sum(b'"type":"s"' in line for line in path.read_bytes().splitlines())
        behind.append(run.step_count - written)
        return run.step_count >= 200

    Run(machine, Walk(limit=1000), journal=JournalWriter(path)).until(watch)
    assert 10 < max(behind) <= 14  # 50 ms are 12.5 steps, and this one is looked at before it is told


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_loses_at_most_50_ms_however_the_run_is_moved(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.jsonl"
    told = killed(way, path, lasting=3 * SLACK_NS)
    begun = sum(time < told[-1] - SLACK_NS for time in told)
    finished = begun - 1
    assert sum(isinstance(step, StepRecord) and step.p == "draw" for step in Journal.open(path).records()) >= finished
    assert finished > 0


@pytest.mark.parametrize("way", ["step", "iterate", "edit"])
def test_a_kill_loses_no_step_of_a_run_that_is_stepped(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.jsonl"
    told = killed(way, path, after=50)
    assert sum(isinstance(step, StepRecord) and step.p == "draw" for step in Journal.open(path).records()) in (
        len(told) - 1, len(told),
    )  # fmt: skip


@pytest.mark.parametrize("move", [lambda run: run.take(4), lambda run: run.step(), lambda run: next(iter(run)),
                                  lambda run: run.until(lambda run: True)])  # fmt: skip
def test_each_step_is_in_the_file_when_the_run_rests(tmp_path: Path, move: Callable[[Run[Walk]], Any]) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=50), journal=JournalWriter(path))
    for number in range(1, 6):
        move(run)
        assert sum(isinstance(step, StepRecord) for step in Journal.open(path).records()) == number


def test_all_steps_are_in_the_file_when_a_loop_over_the_steps_of_a_phase_rests(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=50), journal=JournalWriter(path))
    for step, _ in zip(run.each(draw), range(5), strict=False):
        records = [record for record in Journal.open(path).records() if isinstance(record, StepRecord)]
        assert [record.n for record in records] == list(range(step.number + 1))


def test_a_goto_and_a_fork_tell_what_a_loop_left_untold(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    run = Run(machine, Walk(limit=50), journal=JournalWriter(path))
    for step in run:
        if step.number == 9:
            break
    run.goto(3)
    assert sum(isinstance(step, StepRecord) for step in Journal.open(path).records()) == 10
    fork = run.fork(journal=JournalWriter(other))
    assert sum(isinstance(step, StepRecord) for step in Journal.open(other).records()) == 3
    assert Journal.open(other).header.forked_from == run.id
    fork.resume()
    assert verify(Journal.open(other), Run(machine, Walk(limit=50))).verified


def test_with_every_step_a_finished_step_is_in_the_file_before_the_next_phase_runs(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl", []

    class Looking(Draw):
        def run(self, context: Walk) -> int:
            if path.stat().st_size:
                seen.append(sum(isinstance(step, StepRecord) for step in Journal.open(path).records()))
            return super().run(context) // 2 * 2

    Run(walk(Looking("draw")), Walk(limit=20), journal=JournalWriter(path, every="step")).start()
    assert seen == list(range(1, 20))


def test_sync_waits_for_the_disk_at_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    Run(machine, Walk(limit=20), journal=JournalWriter(tmp_path / "a.jsonl", every="step", sync=True)).start()
    assert len(synced) >= 20
    synced.clear()
    Run(machine, Walk(limit=20), journal=JournalWriter(tmp_path / "b.jsonl", every="step")).start()
    assert not synced


def test_a_writer_records_one_run_only(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "a.jsonl")
    first = Run(machine, Walk(), journal=writer)
    with pytest.raises(JournalError, match=f"records run {first.id} already: give each run its own"):
        Run(machine, Walk(), journal=writer)
    first.start()
    with pytest.raises(JournalError, match="already"):
        Run(machine, Walk(), journal=writer)
    assert verify(Journal.open(tmp_path / "a.jsonl"), Run(machine, Walk())).verified


def test_a_journal_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("precious")
    with pytest.raises(JournalError, match="exists already"):
        JournalWriter(path)
    assert path.read_text() == "precious"
    with pytest.raises(JournalError, match="cannot be made"):
        JournalWriter(tmp_path / "no" / "such" / "folder.jsonl")


def test_what_cannot_be_encoded_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    class OddDigest(Draw):
        def digest(self, context: Walk) -> Any:
            return object() if len(context.drawn) == 3 else [len(context.drawn)]

    run = Run(walk(OddDigest("draw")), Walk(limit=8), journal=JournalWriter(path), digest_every=1)
    with pytest.raises(JournalError, match=r"cannot hold the digest or outcome of step \d \(draw\): .*; all else was"):
        run.start()
    steps = [step for step in Journal.open(path).records() if isinstance(step, StepRecord)]
    assert len(steps) == run.step_count
    assert [step.o for step in steps] == [step.outcome for step in run.steps()]
    lost = [step.n for step in steps if step.p == "draw" and step.d is None]
    assert len(lost) == 1


def test_names_that_no_reader_would_take_are_refused_when_the_run_begins(tmp_path: Path) -> None:
    odd = replace(machine, name="walk\x1b[31m")
    run = Run(odd, Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    with pytest.raises(JournalError, match=r"cannot record run .*the name 'walk.*1b.*' holds control characters"):
        run.start()


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
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS)
    if on_full == "fail":
        assert done.stdout.startswith(f"failed the journal {path} cannot be written: File too large; free some space")
    else:
        assert done.stdout == "done\n"
        assert "cannot be written: File too large; the run goes on without it" in done.stderr
    written = path.read_bytes()
    assert len(written) == 20_000
    assert Journal.open(path).torn == len(written) - (written.rfind(b"\n") + 1)
    assert sum(1 for _ in Journal.open(path).records()) > 100


class Torn:
    """An interrupt that comes after so many bytes of the next write, or just after all of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        write = os.write

        def torn(file: int, data: Any) -> int:
            if self.left is None:
                return write(file, data)
            left, self.left = self.left, None
            written = write(file, bytes(data)[:left])
            assert written == min(left, len(data))
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "write", torn)


@pytest.mark.parametrize("left", [0, 1, 30, 77, 100_000])
def test_an_interrupt_in_the_middle_of_a_write_neither_tears_nor_doubles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    torn, path = Torn(monkeypatch), tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=20), journal=JournalWriter(path), keep=True)
    run.until(lambda run: run.step_count == 6)
    torn.left = left
    with pytest.raises(KeyboardInterrupt):
        run.step()
    monkeypatch.undo()
    assert run.status is Status.FAILED
    run.back()
    run.resume()
    verdict = verify(Journal.open(path), Run(machine, Walk(limit=20)))
    assert verdict.divergence is None
    assert Journal.open(path).torn == 0
    records = [record for record in Journal.open(path).timeline() if isinstance(record, StepRecord)]
    assert [record.o for record in records] == [step.outcome for step in run.steps()]
