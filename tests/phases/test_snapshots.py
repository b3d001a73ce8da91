"""Generations are saved and resumed, with or without their past; what is no snapshot of theirs is refused."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import finish
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from phases import Generator, SamplingParams
from phases.replay import replay
from statemachine import IllegalMove, Journal, Snapshot, SnapshotError, Status
from statemachine.record.snapshot import load

pytestmark = pytest.mark.slow

CORPUS = sorted((Path(__file__).parents[1] / "journals").glob("schema*"))  # of all versions
PROMPTS = ["the quick fox", "Decode appends to it.", "x"]
PARAMS = SamplingParams(temperature=0.9, seed=5, max_new_tokens=12, stop_token_ids=())


@pytest.mark.parametrize("path", [path for folder in CORPUS for path in folder.glob("[wb][ha][or]*e.snap")])
def test_the_corpus_of_snapshots_is_gone_on_with(path: Path) -> None:
    with Generator.from_pretrained() as generator:
        run = generator.resume(path)
        assert len(run.context.output_ids[0]) == 8
        run.resume()
        whole = replay(path.with_name("greedy.jsonl"), "play").run
        assert run.context.output_texts == whole.context.output_texts


@given(st.integers(0, 37), st.integers(1, 3), st.sampled_from([0, 0.8, 1.4]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_resumed_run_equals_the_uninterrupted_one(
    generator: Generator,
    tmp_path_factory: pytest.TempPathFactory,
    steps: int,
    rows: int,
    temperature: float,
    blob: bool,
) -> None:
    path = tmp_path_factory.mktemp("snap") / "a.snap"
    params = SamplingParams(temperature=temperature, seed=9, max_new_tokens=12, stop_token_ids=())
    whole = generator.generate(PROMPTS[:rows], params)
    run = generator.start(PROMPTS[:rows], params)
    for _ in range(min(steps, 38)):
        if not run.status.ended:
            run.step()
    if run.status.ended:
        return
    run.snapshot(path, kv="copy" if blob else "recompute")
    run.close()
    blocker = generator.start("y")  # so that the run comes back on other rows
    resumed = generator.resume(path)
    assert set(resumed.context.slots).isdisjoint(blocker.context.slots)
    resumed.resume()
    blocker.close()
    assert resumed.context.output_ids == whole.output_ids
    assert resumed.context.output_texts == whole.output_texts
    assert resumed.status is Status.DONE


def test_resumed_in_another_process(generator: Generator, tmp_path: Path) -> None:
    whole = generator.generate("the fox", PARAMS)
    run = generator.start("the fox", PARAMS)
    run.until(lambda run: len(run.context.output_ids[0]) == 5)
    with pytest.raises(ValueError, match='takes kv="copy" or kv="recompute", not'):
        run.snapshot(tmp_path / "a.snap", kv="maybe")
    run.snapshot(tmp_path / "a.snap", kv="recompute")
    run.close()
    answer = finish("resume", str(tmp_path / "a.snap"), "--json", "--journal", str(tmp_path / "a.jsonl"))
    assert json.loads(answer.out)["output_ids"] == whole.output_ids[0]
    assert Journal.open(tmp_path / "a.jsonl").header.resumed == {"file": "a.snap", "kv": "recompute"}
    assert replay(tmp_path / "a.jsonl", generator=generator).divergence is None


def test_snapshots_of_one_run_cost_what_changed(tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path / "model", max_position_embeddings=2048)
    with Generator.from_pretrained(folder) as generator:
        run = generator.start("the fox " * 120, SamplingParams(temperature=0, max_new_tokens=60, stop_token_ids=()))
        sizes = []
        for number in range(6):
            run.until(lambda run, tokens=number + 2: len(run.context.output_ids[0]) == tokens)
            before = sum(page.stat().st_size for page in tmp_path.glob("snapshot-pages/*"))
            run.snapshot(tmp_path / f"{number}.snap", share=True)
            pages = sum(page.stat().st_size for page in tmp_path.glob("snapshot-pages/*")) - before
            sizes.append((tmp_path / f"{number}.snap").stat().st_size + pages)
        cache = run.context.cached[0] * generator.engine.kv_cache.bytes_per_position
        assert sizes[0] > cache * 0.9
        assert max(sizes[1:]) < cache * 0.5
        run.snapshot(tmp_path / "alone.snap")
        expected = run.context.output_ids[0]
        run.close()
        for name in ("5.snap", "alone.snap"):
            resumed = generator.resume(tmp_path / name)
            assert resumed.context.output_ids[0] == expected
            resumed.close()
        (tmp_path / "0.snap").unlink()
        generator.resume(tmp_path / "5.snap").close()
        for page in tmp_path.glob("snapshot-pages/*"):
            page.unlink()
        with pytest.raises(SnapshotError, match=r"5.snap needs 'kv.* of its shared pages: .*cannot be read"):
            generator.resume(tmp_path / "5.snap")
        generator.resume(tmp_path / "alone.snap").close()


@pytest.fixture(scope="module")
def snapshot(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "a.snap"
    run = generator.start("the fox", PARAMS)
    run.until(lambda run: len(run.context.output_ids[0]) == 5)
    run.snapshot(path)
    run.close()
    return path


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_snapshot_is_refused_and_harms_nothing(
    generator: Generator, snapshot: Path, data: st.DataObject
) -> None:
    whole = bytearray(snapshot.read_bytes())
    path = snapshot.with_name("damaged.snap")
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    before = generator.engine.kv_cache.free
    with pytest.raises(SnapshotError):
        generator.resume(path).close()
    assert generator.engine.kv_cache.free == before


def rewritten(snapshot: Path, change: object, **contents: object) -> Path:
    """The snapshot with its arrays and what it says of itself changed, checksums made good again."""
    from statemachine.record.pages import checksum_of

    arrays = load_file(snapshot)
    with snapshot.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header["__metadata__"]
    change(arrays, metadata)  # type: ignore[operator]
    said = json.loads(metadata["contents"])
    said["own"] = {name: checksum_of(array) for name, array in arrays.items()}
    metadata["contents"] = json.dumps(said | contents)
    path = snapshot.with_name("rewritten.snap")
    save_file(arrays, path, metadata=metadata)
    return path


def test_hostile_snapshots_are_refused_by_name(generator: Generator, snapshot: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        before = generator.engine.kv_cache.free
        with pytest.raises(SnapshotError, match=message):
            generator.resume(path)
        assert generator.engine.kv_cache.free == before

    def shape(arrays: dict, metadata: dict) -> None:
        arrays["kv.0.0"] = arrays["kv.0.0"][:1].copy()

    def missing(arrays: dict, metadata: dict) -> None:
        del arrays["kv.0.0"]

    def kind(arrays: dict, metadata: dict) -> None:
        arrays["kv.0.0"] = arrays["kv.0.0"].astype(np.float64)

    def newer(arrays: dict, metadata: dict) -> None:
        metadata["schema"] = "3"

    def nothing(arrays: dict, metadata: dict) -> None: ...

    refused(rewritten(snapshot, shape), r"does not fit this run: array 'kv.0.0': a stretch of the cache is float32")
    refused(rewritten(snapshot, missing), r"array 'kv.0.0' is missing")
    refused(rewritten(snapshot, kind), r"array 'kv.0.0': a stretch of the cache is float64")
    refused(rewritten(snapshot, newer), "has schema 3, but this version reads schema 2")
    for name in ("../a.snap", "/etc/passwd", "..", "a/b"):
        refused(rewritten(snapshot, nothing, shared={"kv.0.9": name}), "'kv.0.9' is no shared array")
    refused(rewritten(snapshot, nothing, shared={"kv.0.9": "0" * 64}), "cannot be read: No such file")
    path = snapshot.with_name("huge.snap")
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refused(path, "its header would be 4611686018427387904 bytes long")
    twice = b'{"__metadata__":{"format":"phasewalk.snapshot"},"a":{},"a":{}}'
    path.write_bytes(len(twice).to_bytes(8, "little") + twice)
    refused(path, "a name stands twice")
    save_file({"a": np.zeros(1)}, path, metadata={"format": "pt"})
    refused(path, "is no snapshot, but 'pt'")
    refused(snapshot.with_name("nowhere.snap"), "cannot be read: No such file")


def test_a_snapshot_of_another_model_or_machine_is_refused(
    snapshot: Path, generator: Generator, tmp_path: Path
) -> None:
    with (
        Generator.from_pretrained(write_chat_checkpoint(tmp_path, seed=3)) as other,
        pytest.raises(SnapshotError, match=r"belongs to another model .* -> "),
    ):
        other.resume(snapshot)
    from phases import machine
    from statemachine import Phase

    changed = Generator(
        generator.engine, generator.tokenizer, folder=generator.folder, source=generator.source,
        machine=machine.insert(Phase("extra"), between=("prefill", "sample")),
    )  # fmt: skip
    with pytest.raises(SnapshotError, match=r"cannot be resumed: replay diverged at step 1 in phase 'prefill': target"):
        changed.resume(snapshot)
    grown = Generator(
        generator.engine, generator.tokenizer, folder=generator.folder, source=generator.source,
        machine=dataclasses.replace(machine, transitions=machine.transitions[::-1]),
    )  # fmt: skip
    grown.resume(snapshot).close()  # its table differs, and does the same


def test_a_snapshot_replaces_the_old_one_whole_or_not_at_all(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    run = generator.start("the fox", PARAMS)
    run.step()
    run.snapshot(path)
    run.step()
    run.snapshot(path)
    assert load(path).journal.header.run == run.id
    assert [type(record).__name__ for record in load(path).journal.records()] == 2 * ["StepRecord"] + ["PauseRecord"]
    assert isinstance(load(path), Snapshot)
    with pytest.raises(SnapshotError, match="cannot be written"):
        run.snapshot(tmp_path / "no" / "folder.snap")
    assert os.listdir(tmp_path) == ["a.snap"]
    run.close()


def test_a_state_without_its_past_is_constant_in_size_and_goes_on(generator: Generator, tmp_path: Path) -> None:
    whole = generator.generate(PROMPTS, PARAMS)
    run = generator.start(PROMPTS, PARAMS)
    run.until(lambda run: len(run.context.output_ids[0]) == 5)
    run.edit("sampling", row=1, temperature=0.9)
    run.snapshot(tmp_path / "a.snap", history=False)
    there = {name: getattr(run.context, name) for name in ("prompt_ids", "output_ids", "live", "cached", "budgets",
                                                           "finish_reasons", "forced", "request")}  # fmt: skip
    run.resume()
    again = generator.resume(tmp_path / "a.snap", journal=tmp_path / "b.jsonl")
    assert {name: repr(getattr(again.context, name)) for name in there} != {}
    with pytest.raises(IllegalMove, match="was not kept"):
        again.goto(0)
    again.resume()
    assert again.context.output_ids == whole.output_ids
    assert Journal.open(tmp_path / "b.jsonl").header.first > 0
    assert replay(tmp_path / "b.jsonl", "play").run.context.output_ids == whole.output_ids
