"""Whatever a journal or a snapshot from outside says, reading it ends in an answer or in an error that names it."""

import io
import json
from pathlib import Path
from typing import Any

import desk
import hostile
import pytest
from safetensors.numpy import load_file, save_file
from statemachine_recorded import Walk, forge, lines, machine

from statemachine import (
    Journal,
    JournalError,
    JournalWriter,
    Run,
    Verdict,
    play,
    recover,
    restore,
    to_dot,
    to_mermaid,
    verify,
)
from statemachine.record.pages import checksum_of
from statemachine.record.snapshot import load
from statemachine.views.chart import Chart
from statemachine.views.tally import Tally
from statemachine.views.trace import write_trace

pytestmark = pytest.mark.slow

REQUEST = {"seed": 0, "limit": 12}


def ready() -> Run[Walk]:
    return Run(machine, Walk(limit=12), request=REQUEST)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with every kind of record, and two snapshots."""
    folder = tmp_path_factory.mktemp("recorded")
    run = Run(machine, Walk(limit=12), request=REQUEST, journal=JournalWriter(folder / "a.jsonl"), digest_every=2,
              keep=True)  # fmt: skip
    run.until(lambda run: run.step_count == 4)
    run.edit("bonus", amount=1)
    while run.phase_name != "note":
        run.step()
    run.signal("skip", wait=True)
    run.until(lambda run: run.step_count == 9)
    run.snapshot(folder / "whole.snap")
    run.snapshot(folder / "bare.snap", history=False)
    run.back(2)
    run.until(lambda run: run.step_count == 11)
    run.signal("stop")
    run.close()
    assert {line["type"] for line in lines(folder / "a.jsonl")} == {"header", "s", "edit", "signal", "pause", "goto",
                                                                    "end"}  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def signalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of signals with payloads, taken, refused and waiting."""
    folder = tmp_path_factory.mktemp("signalled")
    run = Run(desk.machine, desk.Text(), journal=JournalWriter(folder / "a.jsonl"))
    run.signal("approve", desk.Approval("the thief"), wait=True)
    run.start()
    run.edit("correct", drafts=1)
    for by in ("Ada", "late"):
        run.signal("approve", desk.Approval(by), wait=True)
    run.edit("correct", drafts=4)
    run.resume()
    assert {line["type"] for line in lines(folder / "a.jsonl")} == {"header", "s", "edit", "signal", "refused", "pause",
                                                                    "end"}  # fmt: skip
    return folder


def read_desk(path: Path) -> None:
    """Everything that one can do with a journal of signals."""
    journal = Journal.open(path)
    list(journal.timeline())
    hostile.check_divergence(play(journal, Run(desk.machine, desk.Text())))
    hostile.check_divergence(verify(journal, Run(desk.machine, desk.Text())).divergence)
    to_mermaid(Chart.of_record(journal.header.machine), tally=Tally.of(journal))
    write_trace(journal, io.BytesIO())
    copy = path.with_name("copy.jsonl")
    copy.write_bytes(path.read_bytes())
    try:
        hostile.check_divergence(recover(copy, Run(desk.machine, desk.Text())))
    except JournalError as error:
        raise JournalError(str(error).replace(copy.name, path.name)) from error


def test_every_hostile_signal_is_read_or_refused_with_its_name(signalled: Path, tmp_path: Path) -> None:
    refused = hostile.refusals(read_desk, hostile.files(lines(signalled / "a.jsonl"), tmp_path, 800, seed=5))
    assert 100 < refused < 800


def read(path: Path) -> None:
    """Everything that one can do with a journal."""
    journal = Journal.open(path)
    list(journal.records())
    list(journal.timeline())
    hostile.check_divergence(play(journal, ready()))
    verdict = verify(journal, ready())
    assert isinstance(verdict, Verdict)
    hostile.check_divergence(verdict.divergence)
    hostile.check_words("".join(verdict.differences))
    chart = Chart.of_record(journal.header.machine)
    tally = Tally.of(journal)
    assert tally.shares()
    to_mermaid(chart)
    to_dot(chart)
    write_trace(journal, io.BytesIO())


@pytest.mark.parametrize("seed", range(4))
def test_a_journal_from_outside_is_read_or_refused(recorded: Path, tmp_path: Path, seed: int) -> None:
    paths = hostile.files(lines(recorded / "a.jsonl"), tmp_path, 800, seed)
    assert 100 < hostile.refusals(read, paths, seconds=2) < 800


def test_a_journal_from_outside_is_recovered_or_refused(recorded: Path, tmp_path: Path) -> None:
    for path in hostile.files(lines(recorded / "a.jsonl")[:-1], tmp_path, 400, 5):
        run = ready()
        try:
            hostile.check_divergence(recover(path, run))
        except Exception as error:
            hostile.check_refusal(error, "odd.jsonl")
        run.close()


@pytest.mark.parametrize("name", ["whole.snap", "bare.snap"])
def test_a_snapshot_from_outside_is_restored_or_refused(recorded: Path, tmp_path: Path, name: str) -> None:
    import random

    import numpy as np

    whole = recorded / name
    arrays = load_file(whole)
    with whole.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    contents = json.loads(header["__metadata__"]["contents"])
    (tmp_path / "lines").write_bytes(arrays["record"].tobytes())
    choose = random.Random(7)
    for journal in hostile.files(lines(tmp_path / "lines"), tmp_path, 600, 11):
        arrays["record"] = np.frombuffer(journal.read_bytes(), np.uint8)
        said = contents | {"own": {key: checksum_of(array) for key, array in arrays.items()}}
        if choose.random() < 0.3:
            [said] = hostile.mutated([said], choose)
        path = tmp_path / "odd.snap"
        text: Any = json.dumps(said)
        save_file(arrays, path, metadata=header["__metadata__"] | {"contents": text})
        try:
            hostile.check_divergence(restore(load(path), ready()))
        except Exception as error:
            hostile.check_refusal(error, "odd.snap")


def test_large_numbers_and_names_take_no_memory(recorded: Path, tmp_path: Path) -> None:
    import tracemalloc

    records = lines(recorded / "a.jsonl")
    records[0]["first"] = 2**53
    records[0]["digest_every"] = 2**53
    for record in records[1:]:
        record["n"] += 2**40
        record["t"] = 2**63 - 1
    tracemalloc.start()
    try:
        read(forge(tmp_path / "odd.jsonl", records))
    except Exception as error:
        hostile.check_refusal(error, "odd.jsonl")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
