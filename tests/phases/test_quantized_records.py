"""Weights that were quantised when a run was recorded are those that it is run again and gone on with, or none are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from coarse_engine import coarse
from command_line import Command
from forging import forged

from gpu import OptionError, engines, load_engine
from phases import Generator, JournalError, SamplingParams, SnapshotError
from phases.replay import load_generator, loaded_as, replay
from statemachine import Journal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("coarse")]

__all__ = ["coarse"]  # a fixture

GREEDY = SamplingParams(temperature=0, max_new_tokens=6, stop_token_ids=())
WITHOUT_GPU = pytest.mark.skipif("cuda" not in engines(), reason="needs a device")
ENGINES = ["coarse", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT_GPU])]
SHORT = ("--engine", "coarse", "--temperature", "0", "--max-new-tokens", "6")


def recorded(folder: Path, path: Path, quantize: str | None, engine: str = "coarse") -> Path:
    """A journal, and beside it a snapshot and the journal of a run that was killed."""
    with Generator.from_pretrained(folder, engine, max_batch=2, quantize=quantize) as generator:
        run = generator.start("the fox", GREEDY, journal=path)
        run.until(lambda run: run.step_count == 4)
        run.snapshot(path.with_suffix(".snap"))
        path.with_name("killed.jsonl").write_bytes(path.read_bytes())
        run.resume()
    return path


@pytest.mark.parametrize("quantize", ["int8", "fp8", None])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_record_is_run_again_with_the_weights_that_it_was_made_with(
    chat_folder: Path, tmp_path: Path, engine: str, quantize: str | None
) -> None:
    path = recorded(chat_folder, tmp_path / "a.jsonl", quantize, engine)
    journal = Journal.open(path)
    assert journal.header.environment.get("quantize") == quantize
    with load_generator(journal) as generator:
        assert generator.environment().get("quantize") == quantize
        verdict = replay(path, generator=generator).verdict
        assert verdict is not None
        assert verdict.verified
        assert not verdict.differences
        assert generator.resume(tmp_path / "a.snap").resume() == "done"
    verdict = replay(path).verdict
    assert verdict is not None
    assert verdict.verified


@pytest.mark.parametrize(("made", "here"), [("int8", None), (None, "int8"), ("int8", "fp8")])
def test_other_weights_are_refused_by_name(
    chat_folder: Path, tmp_path: Path, made: str | None, here: str | None
) -> None:
    path = recorded(chat_folder, tmp_path / "a.jsonl", made)
    killed = tmp_path / "killed.jsonl"
    before = killed.read_bytes()
    words = {None: "weights that are not quantised", "int8": "int8 weights", "fp8": "fp8 weights"}
    message = rf"was made with {words[made]}, here are {words[here]}: load the model with quantize={made!r}"
    with Generator.from_pretrained(chat_folder, "coarse", max_batch=2, quantize=here) as generator:
        for mode in ("verify", "fork"):
            with pytest.raises(JournalError, match=rf"a\.jsonl {message}"):
                replay(path, mode, generator=generator)
        with pytest.raises(SnapshotError, match=rf"a\.snap {message}"):
            generator.resume(tmp_path / "a.snap")
        with pytest.raises(JournalError, match=rf"killed\.jsonl {message}"):
            generator.recover(killed)
        assert generator.free_rows == 2
    assert killed.read_bytes() == before
    assert replay(path, "play").divergence is None


def test_records_of_other_weights_do_not_share_a_model(chat_folder: Path, tmp_path: Path) -> None:
    keys = {loaded_as(Journal.open(recorded(chat_folder, tmp_path / f"{number}.jsonl", quantize)))
            for number, quantize in enumerate((None, "int8", "fp8"))}  # fmt: skip
    assert len(keys) == 3


def test_the_command_line_records_and_replays_them(phasewalk: Command, chat_folder: Path) -> None:
    model = ("--model", str(chat_folder))
    for quantize in ("none", "int8", "fp8"):
        journal = f"{quantize}.jsonl"
        answer = phasewalk("run", "the fox", *model, *SHORT, "--quantize", quantize, "--journal", journal)
        assert (answer.code, answer.err) == (0, "")
        header = json.loads(Path(journal).read_text().partition("\n")[0])
        assert header["environment"].get("quantize", "none") == quantize
        verified = phasewalk("replay", journal)
        assert verified.code == 0
        assert "verified" in verified.err
        assert "note" not in verified.err
    table = phasewalk("replay", ".", "--json")
    assert table.code == 0
    assert [json.loads(line)["complete"] for line in table.out.splitlines()] == [True] * 3
    assert phasewalk("report", "int8.jsonl", "-o", "int8.html", "--verify").code == 0
    assert "int8" in Path("int8.html").read_text().replace("int8.jsonl", "")


def test_a_run_goes_on_with_them(phasewalk: Command, chat_folder: Path, tmp_path: Path) -> None:
    path = recorded(chat_folder, tmp_path / "a.jsonl", "fp8")
    whole = replay(path, "play").run.context.output_ids[0]
    for saved in ("a.snap", "killed.jsonl"):
        answer = phasewalk("resume", str(tmp_path / saved), "--json")
        assert answer.code == 0
        assert json.loads(answer.out)["output_ids"] == whole


def test_other_commands_load_them(phasewalk: Command, chat_folder: Path) -> None:
    model = ("--model", str(chat_folder), "--engine", "coarse", "--quantize", "int8")
    assert phasewalk("step", "the fox", "--plain", *model, stdin="where\nquit\n").code == 0
    profile = phasewalk("profile", "the fox", *model, "--tokens", "3")
    assert profile.code == 0
    assert "engine coarse, int8 weights" in profile.out


@pytest.mark.skipif("cuda" in engines(), reason="there is a GPU here")
def test_a_record_of_an_engine_that_cannot_run_here_is_refused_in_a_line(
    phasewalk: Command, chat_folder: Path, tmp_path: Path
) -> None:
    def on_a_gpu(records: list[dict[str, Any]]) -> None:
        records[0]["environment"]["engine"] = "cuda"

    path = forged(recorded(chat_folder, tmp_path / "a.jsonl", "int8"), tmp_path / "gpu.jsonl", on_a_gpu)
    for command in ("replay", "resume"):
        answer = phasewalk(command, str(path))
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith(f"phasewalk: {path} cannot be run again: the engine cuda cannot run here: ")
        assert answer.err.count("\n") == 1
    assert phasewalk("replay", str(path), "--mode", "play").code == 0


REFUSAL = (
    "the engine numpy has no option quantize, its weights are float32: leave it out, or take the "
    "engine cuda (int8, fp8) or onnx (int8, int4)"
)


@pytest.mark.parametrize("command", [("run", "x"), ("step", "x", "--plain"), ("profile",), ("perplexity",)])
def test_an_engine_that_quantises_no_weights_says_so(
    phasewalk: Command, chat_folder: Path, command: tuple[str, ...]
) -> None:
    Path("text.txt").write_text("the fox")
    file = ("text.txt",) if command == ("perplexity",) else ()
    options = ("--model", str(chat_folder), "--engine", "numpy", "--quantize", "int8")
    answer = phasewalk(*command, *file, *options)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"phasewalk: {REFUSAL}")
    assert answer.err.count("\n") == 1
    unknown = phasewalk(*command, *file, *options[:-1], "int3")
    assert unknown.code == 2
    assert "'int3' is not one of 'none', 'int8', 'fp8'" in unknown.err


def test_the_same_from_python(chat_folder: Path) -> None:
    with pytest.raises(OptionError, match=re.escape(REFUSAL)):
        load_engine(chat_folder, "numpy", quantize="int8")
    with pytest.raises(OptionError, match=re.escape(REFUSAL)):
        Generator.from_pretrained(chat_folder, "numpy", quantize="int8")
    Generator.from_pretrained(chat_folder, "numpy", quantize=None).close()
    with pytest.raises(OptionError, match="not quantised as 'int3': expected int8 or fp8"):
        Generator.from_pretrained(chat_folder, "coarse", quantize="int3")
