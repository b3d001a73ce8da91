"""Generations are recorded, replayed, played without a model, forked, saved and resumed."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from phases import Generator, SamplingParams
from phases.replay import replay
from statemachine import IllegalMove, Journal, JournalError, PhaseError, Snapshot, SnapshotError, Status, verify
from statemachine.record.snapshot import load

pytestmark = pytest.mark.slow

CORPUS = sorted((Path(__file__).parents[1] / "journals").glob("schema*"))  # of all versions
JOURNALS = CORPUS[-1]
GENERATIONS = [path for folder in CORPUS for path in sorted(folder.glob("*.jsonl")) if path.stem != "walk"]
PROMPTS = ["the quick fox", "Decode appends to it.", "x"]
PARAMS = SamplingParams(temperature=0.9, seed=5, max_new_tokens=12, stop_token_ids=())
PYTHON = "import sys; from phases.cli import main; main()"


@pytest.mark.parametrize("path", GENERATIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_corpus_of_the_bundled_model_replays(path: Path) -> None:
    """A mismatch means that tokens changed: if that was meant, record again (python tests/journals/record.py)."""
    done = replay(path)
    assert done.divergence is None, done.divergence.report()
    played = replay(path, "play")
    assert played.divergence is None
    assert played.run.context.output_ids == done.run.context.output_ids
    assert done.verdict is not None
    assert done.verdict.verified
    done.run.close()


@pytest.mark.parametrize("path", [path for folder in CORPUS for path in folder.glob("[wb][ha][or]*e.snap")])
def test_the_corpus_of_snapshots_is_gone_on_with(path: Path) -> None:
    with Generator.from_pretrained() as generator:
        run = generator.resume(path)
        assert len(run.context.output_ids[0]) == 8
        run.resume()
        whole = replay(path.with_name("greedy.jsonl"), "play").run
        assert run.context.output_texts == whole.context.output_texts


def test_play_needs_no_model_engine_or_tokenizer(tmp_path: Path) -> None:
    code = (
        "import sys; from phases.replay import replay\n"
        f"done = replay({str(JOURNALS / 'batch.jsonl')!r}, 'play')\n"
        "heavy = [m for m in ('transformers', 'tokenizers', 'torch', 'safetensors') if m in sys.modules]\n"
        "print(done.divergence, done.run.status, done.run.context.output_texts, heavy)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.startswith("None done ['3, 4, 5, 6, 7, 8, 9.'")
    assert answer.stdout.endswith("[]\n")


def test_play_reproduces_context_text_and_timing(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = generator.start(PROMPTS, PARAMS, journal=path)
    run.start()
    played = replay(path, "play").run
    assert played.status is Status.DONE
    assert list(played.steps()) == list(run.steps())
    assert [step.elapsed_ns for step in played.steps()] == [step.elapsed_ns for step in run.steps()]
    for name in ("prompt_ids", "output_ids", "output_texts", "finish_reasons", "cached", "budgets"):
        assert getattr(played.context, name) == getattr(run.context, name)
    middle = replay(path, "play", at=9).run
    assert middle.step_count == 9
    assert middle.status is Status.PAUSED
    middle.goto(4)
    assert middle.phase.name == "check_stop"


@given(st.integers(0, 37), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_a_fork_goes_on_as_the_recorded_run_did(
    generator: Generator, tmp_path_factory: pytest.TempPathFactory, at: int, rows: int
) -> None:
    path = tmp_path_factory.mktemp("fork") / "a.jsonl"
    run = generator.start(PROMPTS[:rows], PARAMS, journal=path)
    run.start()
    forked = replay(path, "fork", generator=generator, at=min(at, run.step_count)).run
    with forked:
        if not forked.status.ended:
            forked.resume()
        assert forked.context.output_ids == run.context.output_ids


def test_a_divergence_names_step_field_values_causes_and_common_steps(
    generator: Generator, chat_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    generator.start("the fox", PARAMS, journal=path, digest_every=1).start()
    with Generator.from_pretrained(write_chat_checkpoint(tmp_path / "other", seed=1), max_batch=4) as other:
        done = replay(path, generator=other)
    found = done.divergence
    assert found is not None
    assert (found.step, found.phase, found.field) == (1, "prefill", "digest")
    assert any(cause.startswith("model: ") for cause in found.causes)
    assert found.common[0].startswith("0: tokenize [[")
    assert found.detail["largest_difference"] is None or found.detail["largest_difference"] > 0
    assert found.detail["recorded_margin"] > 0
    report = found.report()
    assert "replay diverged at step 1 in phase 'prefill': digest" in report
    assert json.loads(json.dumps(found.to_json()))["phase"] == "prefill"
    done.run.close()

    tampered = edited(path, tmp_path / "tampered.jsonl", {8: lambda step: step | {"o": [step["o"][0] + 1]}})
    with pytest.raises(JournalError, match=r"tampered.jsonl, line \d+: the checksum does not fit"):
        replay(tampered, generator=generator)
    found = replay(Journal.open(tampered, chained=False), generator=generator).divergence
    assert found is not None
    assert (found.step, found.phase, found.field) == (8, "sample", "outcome")
    assert found.recorded == [found.replayed[0] + 1]
    assert found.causes == ()


def edited(path: Path, other: Path, changes: dict[int, Callable[[dict], dict]]) -> Path:
    """A copy of a journal in which somebody edited steps by their numbers."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for place, line in enumerate(lines):
        if line["type"] == "s" and line["n"] in changes:
            lines[place] = changes[line["n"]](line)
    other.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return other


def test_a_changed_table_is_told_but_only_what_it_does_diverges(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    generator.start("the fox", PARAMS, journal=path).start()
    text = path.read_text()
    for old, new in (('["check_stop","sample","~all_finished"]', '["check_stop","sample","whenever"]'),
                     (generator.machine.fingerprint, "0" * 64)):  # fmt: skip
        text = text.replace(old, new)
    path.write_text(text)
    done = replay(Journal.open(path, chained=False), generator=generator)
    assert done.divergence is None
    assert done.verdict is not None
    assert "transition gone: check_stop -> sample when whenever" in done.verdict.differences
    assert "transition new: check_stop -> sample when ~all_finished" in done.verdict.differences
    odd = edited(path, tmp_path / "odd.jsonl", {2: lambda step: step | {"g": 1}})
    found = replay(Journal.open(odd, chained=False), "play").divergence
    assert found is not None
    assert (found.field, found.recorded, found.replayed) == ("guards", {"nothing_left": True}, {"nothing_left": False})
    assert "transition gone: check_stop -> sample when whenever" in found.causes


def test_a_journal_of_another_machine_is_no_generation(tmp_path: Path) -> None:
    from statemachine_recorded import record

    record(tmp_path / "a.jsonl")
    for mode in ("play", "verify"):
        with pytest.raises(JournalError, match="records no generation"):
            replay(tmp_path / "a.jsonl", mode)


# --- snapshots --------------------------------------------------------------------------------------------------


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


def test_resumed_in_another_process(chat_folder: Path, generator: Generator, tmp_path: Path) -> None:
    whole = generator.generate("the fox", PARAMS)
    run = generator.start("the fox", PARAMS)
    run.until(lambda run: len(run.context.output_ids[0]) == 5)
    with pytest.raises(ValueError, match='takes kv="copy" or kv="recompute", not'):
        run.snapshot(tmp_path / "a.snap", kv="maybe")
    run.snapshot(tmp_path / "a.snap", kv="recompute")
    run.close()
    command = [
        sys.executable,
        "-c",
        PYTHON,
        "resume",
        str(tmp_path / "a.snap"),
        "--json",
        "--journal",
        str(tmp_path / "a.jsonl"),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["output_ids"] == whole.output_ids[0]
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


# --- recovery ---------------------------------------------------------------------------------------------------


def test_a_generation_whose_process_was_killed_goes_on_in_its_journal(generator: Generator, tmp_path: Path) -> None:
    whole, path = generator.generate(PROMPTS, PARAMS), tmp_path / "a.jsonl"
    run = generator.start(PROMPTS, PARAMS, journal=path)
    for step in run:
        if step.number == 14:
            break
    before = path.read_bytes()
    run.journal.close()  # type: ignore[union-attr]  # what is left of a process that was killed
    run.close()
    path.write_bytes(before + b'{"type":"s","n":')
    again = generator.recover(path, every="step")
    assert again.step_count == 15
    assert next(iter(again)).number == 15  # nothing before it runs again
    again.resume()
    assert again.context.output_ids == whole.output_ids
    assert path.read_bytes().startswith(before)
    assert replay(path, generator=generator).divergence is None
    done = generator.recover(path)
    assert (done.status, done.context.output_texts) == (Status.DONE, whole.output_texts)
    before_free = generator.free_rows
    with pytest.raises(JournalError, match="records no generation"):
        generator.recover(CORPUS[-1] / "walk.jsonl")
    with pytest.raises(JournalError, match="belongs to another model"):
        generator.recover(CORPUS[-1] / "greedy.jsonl")
    assert generator.free_rows == before_free


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


# --- the command line -------------------------------------------------------------------------------------------


def phasewalk(*arguments: str, cwd: Path, **options: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PYTHON, *arguments], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def until_it_decodes(process: subprocess.Popen) -> None:
    """Read its phases until the first Decode; it cannot have run far ahead, as the pipe holds few of its lines."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[1:2] == ["decode"]:
            return


def hold(process: subprocess.Popen) -> subprocess.Popen:
    """Let what a process writes to stderr fill up a small pipe, so that it waits for who reads it."""
    fcntl.fcntl(process.stderr.fileno(), fcntl.F_SETPIPE_SZ, 4096)
    return process


def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    prompt = "Tell me a story about a fox."
    whole = phasewalk("run", prompt, "--seed", "4", "--json", cwd=tmp_path)
    process = hold(phasewalk("run", prompt, "--seed", "4", "--snapshot", "fox.snap", "--phases", cwd=tmp_path))
    until_it_decodes(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.splitlines()[-1] == "paused and saved; go on with:  phasewalk resume fox.snap"
    resumed = phasewalk("resume", "fox.snap", cwd=tmp_path)
    out, _ = resumed.communicate(timeout=60)
    assert out == json.loads(whole.communicate(timeout=60)[0])["text"] + "\n"


def test_replay_tells_divergence_by_its_exit_status(tmp_path: Path) -> None:
    good = (CORPUS[0] / "batch.jsonl").read_text()  # which has no checksums
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "odd.jsonl").write_text(good.replace('"p":"decode","e":4,"o":[', '"p":"decode","e":4,"o":[1', 1))
    (tmp_path / "broken.jsonl").write_text(good[:500])
    table = phasewalk("replay", ".", cwd=tmp_path, env=os.environ | {"COLUMNS": "200"})
    odd = phasewalk("replay", "odd.jsonl", "--json", cwd=tmp_path)
    broken = phasewalk("replay", "broken.jsonl", cwd=tmp_path)
    play = phasewalk("replay", "good.jsonl", "--mode", "play", cwd=tmp_path)
    out, _ = table.communicate(timeout=100)
    assert table.returncode == 3
    assert [next(word for word in ("verified", "diverged", "unusable") if word in line)
            for line in out.splitlines() if ".jsonl" in line] == ["unusable", "verified", "diverged"]  # fmt: skip
    value = json.loads(odd.communicate(timeout=100)[0])
    assert odd.returncode == 3
    assert value["divergence"]["field"] == "outcome"
    _, err = broken.communicate(timeout=100)
    assert broken.returncode == 1
    assert err.startswith("phasewalk: broken.jsonl is no journal")
    assert play.communicate(timeout=100)[0].startswith("[row 0] 3, 4, 5, 6, 7, 8, 9.\n")
    assert play.returncode == 0


def test_verify_of_a_failed_generation(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(PhaseError):
        generator.start("", PARAMS, journal=tmp_path / "a.jsonl").start()
    journal = Journal.open(tmp_path / "a.jsonl")
    assert verify(journal, generator.start("", PARAMS)).verified


def test_resume_goes_on_with_the_journal_of_a_run_that_was_killed(tmp_path: Path) -> None:
    prompt = "Tell me a story about a fox."
    whole = phasewalk("run", prompt, "--seed", "4", "--json", cwd=tmp_path)
    killed = hold(phasewalk("run", prompt, "--seed", "4", "--journal", "fox.jsonl", "--phases", cwd=tmp_path))
    until_it_decodes(killed)
    killed.kill()
    killed.communicate(timeout=60)
    refused = phasewalk("resume", "fox.jsonl", "--journal", "b.jsonl", cwd=tmp_path)
    assert "a journal is gone on with in its own file" in refused.communicate(timeout=60)[1].replace("\n", " ")
    resumed = phasewalk("resume", "fox.jsonl", cwd=tmp_path)
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert out == json.loads(whole.communicate(timeout=60)[0])["text"] + "\n"
    verified = phasewalk("replay", "fox.jsonl", cwd=tmp_path)
    assert "verified" in verified.communicate(timeout=60)[1]
    assert verified.returncode == 0
