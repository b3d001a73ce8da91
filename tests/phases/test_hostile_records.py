"""Whatever the record of a generation says, whoever reads it answers or refuses."""

import io
from pathlib import Path

import hostile
import pytest
from statemachine_recorded import forge, lines

from phases import Generator, SamplingParams
from phases.cli.trace import GenerationDetails
from phases.debugger.generation import GenerationSession
from phases.generation import machine
from phases.replay import load_generator, played_run, replay
from phases.views.recorded_rows import RecordedRows
from phases.views.report import report_of
from statemachine import Journal, JournalError
from statemachine.record.records import EditRecord, SignalRecord, StepRecord
from statemachine.record.snapshot import load, restore
from statemachine.views.trace import write_trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, generator: Generator) -> Path:
    """A journal with digests, edits and a way back, and a snapshot."""
    folder = tmp_path_factory.mktemp("recorded")
    params = SamplingParams(temperature=0.9, seed=5, max_new_tokens=6, stop_token_ids=())
    run = generator.start(["the fox", "Decode"], params, journal=folder / "a.jsonl", digest_every=1, keep=True)
    run.until(lambda run: len(run.context.output_ids[0]) == 2)
    run.edit("force", row=0, token=7)
    run.edit("sampling", row=1, temperature=0.5)
    run.until(lambda run: len(run.context.output_ids[0]) == 4)
    run.snapshot(folder / "bare.snap", history=False, kv="recompute")
    run.back(3)
    run.resume()
    run.close()
    return folder


def read(path: Path) -> None:
    """Everything that one can do with the record of a generation and no model."""
    journal = Journal.open(path)
    hostile.check_divergence(replay(journal, "play").divergence)
    rows = RecordedRows(journal, machine)
    for record in journal.timeline():
        if isinstance(record, StepRecord):
            rows.step(record)
        elif isinstance(record, EditRecord | SignalRecord):
            rows.event(record)
    write_trace(journal, io.BytesIO(), GenerationDetails(RecordedRows(journal, machine)))
    GenerationSession.recorded(path)


@pytest.mark.parametrize("seed", range(3))
def test_a_record_from_outside_is_read_or_refused(recorded: Path, tmp_path: Path, seed: int) -> None:
    paths = hostile.files(lines(recorded / "a.jsonl"), tmp_path, 500, seed)
    assert 50 < hostile.refusals(read, paths, seconds=3) < 500


def test_a_report_of_a_record_from_outside_is_written_or_refused(recorded: Path, tmp_path: Path) -> None:
    def report(path: Path) -> None:
        assert report_of(Journal.open(path)).startswith("<!DOCTYPE html>")

    hostile.refusals(report, hostile.files(lines(recorded / "a.jsonl"), tmp_path, 60, 17))


def test_a_record_from_outside_is_run_again_or_refused(recorded: Path, tmp_path: Path, generator: Generator) -> None:
    from gpu import CapacityError, NoFreeRows

    free = generator.free_rows
    for path in hostile.files(lines(recorded / "a.jsonl"), tmp_path, 150, 23):
        try:
            done = replay(path, generator=generator)
            hostile.check_divergence(done.divergence)
            done.run.close()
        except (CapacityError, NoFreeRows):  # it asks for what this engine has not
            pass
        except Exception as error:
            hostile.check_refusal(error, "odd.jsonl")
        assert generator.free_rows == free


def test_a_state_from_outside_is_taken_or_refused(recorded: Path, tmp_path: Path) -> None:
    import json

    import numpy as np
    from safetensors.numpy import load_file, save_file
    from statemachine.record.pages import checksum_of  # isort: skip

    arrays = load_file(recorded / "bare.snap")
    with (recorded / "bare.snap").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    contents = json.loads(header["__metadata__"]["contents"])
    (tmp_path / "lines").write_bytes(arrays["record"].tobytes())
    for journal in hostile.files(lines(tmp_path / "lines"), tmp_path, 400, 29):
        arrays["record"] = np.frombuffer(journal.read_bytes(), np.uint8)
        said = contents | {"own": {name: checksum_of(array) for name, array in arrays.items()}}
        path = tmp_path / "odd.snap"
        save_file(arrays, path, metadata=header["__metadata__"] | {"contents": json.dumps(said)})
        try:
            snapshot = load(path)
            run = played_run(snapshot.journal)
            run.resources.load = lambda context, arrays, **options: None  # type: ignore[method-assign]
            hostile.check_divergence(restore(snapshot, run))
        except Exception as error:
            hostile.check_refusal(error, "odd.snap")


@pytest.mark.parametrize(
    ("name", "value"),
    [("source", "someone/model"), ("source", "/nowhere"), ("source", 5), ("source", "\x1b[2J"), ("rows", 10**9),
     ("rows", 0), ("rows", True), ("capacity", -1), ("capacity", "many"), ("threads", 10**6), ("threads", 2.5),
     ("engine", "abacus\x1b"), ("quantize", "int8"), ("quantize", "\x1b[2J"), ("quantize", 8),
     ("decode", "fitted"), ("decode", "\x1b[2J"), ("decode", ["fitted"])],
)  # fmt: skip
def test_a_journal_has_no_model_fetched_and_no_giant_loaded(
    recorded: Path, tmp_path: Path, name: str, value: object
) -> None:
    records = lines(recorded / "a.jsonl")
    records[0]["environment"][name] = value
    if name != "source":
        records[0]["environment"]["source"] = "the bundled demo model"
    path = forge(tmp_path / "odd.jsonl", records)
    with pytest.raises(JournalError, match=r"odd.jsonl") as refused:
        load_generator(Journal.open(path))
    hostile.check_words(str(refused.value))


def test_token_ids_and_digests_that_cannot_be_are_refused(recorded: Path, tmp_path: Path) -> None:
    for number in (-1, 2**31, 10**30, 1.5, None, True):
        records = lines(recorded / "a.jsonl")
        step = next(record for record in records if record["type"] == "s" and record["p"] == "check_stop")
        step["o"][0] = number
        with pytest.raises(JournalError, match=r"odd.jsonl, line \d+: .* is no outcome of 'check_stop'"):
            replay(forge(tmp_path / "odd.jsonl", records), "play")
    for digest in (5, [5], [{}], [{"row": -1}], "x", [[]]):
        records = lines(recorded / "a.jsonl")
        next(record for record in records if "d" in record)["d"] = digest
        path = forge(tmp_path / "odd.jsonl", records)
        with pytest.raises(JournalError, match=r"odd.jsonl"):
            GenerationSession.recorded(path)
        with pytest.raises(JournalError, match=r"odd.jsonl"):
            report_of(Journal.open(path))
