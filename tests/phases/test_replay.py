"""Generations are recorded, replayed, played without a model, forked, and gone on with when they were killed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from phases import Generator, SamplingParams
from phases.replay import replay
from statemachine import Journal, JournalError, PhaseError, Status, verify

pytestmark = pytest.mark.slow

CORPUS = sorted((Path(__file__).parents[1] / "journals").glob("schema*"))  # of all versions
JOURNALS = CORPUS[-1]
GENERATIONS = [path for folder in CORPUS for path in sorted(folder.glob("*.jsonl")) if path.stem != "walk"]
PROMPTS = ["the quick fox", "Decode appends to it.", "x"]
PARAMS = SamplingParams(temperature=0.9, seed=5, max_new_tokens=12, stop_token_ids=())


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
    for old, new in (('["check_stop","sample","~all_finished",[]]', '["check_stop","sample","whenever",[]]'),
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


def test_verify_of_a_failed_generation(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(PhaseError):
        generator.start("", PARAMS, journal=tmp_path / "a.jsonl").start()
    journal = Journal.open(tmp_path / "a.jsonl")
    assert verify(journal, generator.start("", PARAMS)).verified


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
        generator.recover(JOURNALS / "walk.jsonl")
    with pytest.raises(JournalError, match="belongs to another model"):
        generator.recover(JOURNALS / "greedy.jsonl")
    assert generator.free_rows == before_free
