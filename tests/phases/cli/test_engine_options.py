"""--engine auto says which engine it took and why, once and on stderr; --export names the folder that onnx runs."""

import json
import re
from pathlib import Path

import pytest
from command_line import Command

from gpu import Checkpoint, ModelConfig, choose_engine, engines
from gpu.onnx.export import export

pytestmark = pytest.mark.slow

SHORT = ("--temperature", "0", "--max-new-tokens", "4")
with_onnx = pytest.mark.skipif("onnx" not in engines(), reason="onnx or onnxruntime is not installed")
without_gpu = pytest.mark.skipif("cuda" in engines(), reason="there is a GPU here")


def commands(model: Path, *options: str) -> list[tuple[str, ...]]:
    """Every command that has the option --engine."""
    about = ("--model", str(model), *options)
    return [
        ("run", "the fox", *SHORT, *about),
        ("step", "the fox", "--plain", *about),
        ("profile", "the fox", "--tokens", "4", *about),
        ("perplexity", "text.txt", "--window", "16", *about),
    ]


@pytest.fixture
def text(phasewalk: Command) -> None:
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog " * 4)


@pytest.mark.usefixtures("text")
def test_auto_is_told_in_one_line_and_a_name_is_not(phasewalk: Command, chat_folder: Path) -> None:
    expected = f"{choose_engine(chat_folder)}\n"
    for auto, named in zip(commands(chat_folder), commands(chat_folder, "--engine", "numpy"), strict=True):
        answer = phasewalk(*auto, stdin="quit\n")
        assert (answer.code, answer.err) == (0, expected), auto
        assert phasewalk(*named, stdin="quit\n").err == "", named


@without_gpu
@with_onnx
@pytest.mark.usefixtures("text")
def test_json_is_json_and_names_the_engine_that_has_what_was_asked_for(phasewalk: Command, chat_folder: Path) -> None:
    for command in commands(chat_folder, "--quantize", "int4", "--json"):
        if command[0] != "step":
            answer = phasewalk(*command)
            assert json.loads(answer.out)["engine"] == "onnx"
            assert answer.err.startswith("engine onnx: the fastest that runs here with int4 weights; not cuda: ")
            assert answer.err.count("\n") == 1
    both = ("--quantize", "none", "--quantize", "int8", "--json")
    answer = phasewalk("perplexity", "text.txt", "--model", str(chat_folder), *both)
    assert [row["weights"] for row in json.loads(answer.out)["rows"]] == ["float32", "int8"]
    assert "engine onnx: the fastest that runs here with int8 weights" in answer.err


@without_gpu
@pytest.mark.usefixtures("text")
def test_what_no_engine_here_has_is_told_with_who_would(phasewalk: Command, chat_folder: Path) -> None:
    for option in (("--quantize", "fp8"), ("--decode", "per-op")):
        for command in commands(chat_folder, *option):
            answer = phasewalk(*command, stdin="quit\n")
            assert (answer.code, answer.out) == (1, "")
            assert re.fullmatch(
                r"phasewalk: no engine that runs here has .*: cuda has, and cannot run here: .*\n", answer.err
            )


@pytest.mark.usefixtures("text")
def test_every_command_takes_a_plan(phasewalk: Command, chat_folder: Path) -> None:
    for command in commands(chat_folder, "--engine", "numpy", "--plan", "text.txt"):
        answer = phasewalk(*command, stdin="quit\n")
        assert (answer.code, answer.out) == (1, "")
        assert "the engine numpy has no option plan: leave it out, or take the engine tensorrt" in answer.err


@without_gpu
@with_onnx
def test_a_record_goes_on_with_its_engine_and_says_nothing(phasewalk: Command, chat_folder: Path) -> None:
    record = ("run", "the fox", *SHORT, "--model", str(chat_folder), "--journal", "a.jsonl", "--quantize", "int8")
    assert "engine onnx" in phasewalk(*record).err
    assert json.loads(Path("a.jsonl").read_text().splitlines()[0])["environment"]["engine"] == "onnx"
    answer = phasewalk("replay", "a.jsonl")
    assert answer.code == 0
    assert answer.err.startswith("a.jsonl: verified")  # and no word of a choice


# --- --export ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported") / "any"
    model = ModelConfig.from_folder(chat_folder)
    export(Checkpoint.open(chat_folder, model), model, made)
    return made


@with_onnx
@pytest.mark.usefixtures("text")
def test_an_export_is_run_where_it_lies(
    phasewalk: Command, chat_folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    for engine in ((), ("--engine", "onnx")):
        for command in commands(chat_folder, "--export", str(exported), *engine):
            answer = phasewalk(*command, stdin="quit\n")
            assert answer.code == 0, answer.err
            assert answer.err == "" if engine else answer.err.startswith("engine onnx: ")
    assert not Path("cache").exists()
    named = phasewalk("run", "the fox", *SHORT, "--model", str(chat_folder), "--engine", "onnx")
    assert Path("cache").exists()
    assert phasewalk("run", "the fox", *SHORT, "--model", str(chat_folder), "--export", str(exported)).out == named.out


@with_onnx
def test_one_that_phasewalk_export_made_is_run_by_every_command(phasewalk: Command, chat_folder: Path) -> None:
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog " * 4)
    assert phasewalk("export", str(chat_folder), "-o", "made").code == 0
    for command in commands(chat_folder, "--export", "made"):
        assert phasewalk(*command, stdin="quit\n").code == 0


@with_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--export", "nowhere"), "nowhere cannot be used: it holds no model.onnx; export the checkpoint again"),
        (("--export", "EXPORTED", "--quantize", "int8"), "the export has float32 weights: load it with quantize=None"),
        (
            ("--export", "EXPORTED", "--engine", "numpy"),
            "the engine numpy has no option export: leave it out, or take the",
        ),
        (("--export", "EXPORTED", "--model", "phases/demo_model"), "it is of another model: it names the fingerprint"),
    ],
)
def test_an_export_that_does_not_fit_is_told(
    phasewalk: Command, chat_folder: Path, exported: Path, options: tuple[str, ...], message: str
) -> None:
    root = Path(__file__).parents[3]
    places = {"EXPORTED": str(exported), "phases/demo_model": str(root / "phases/demo_model")}
    options = tuple(places.get(option, option) for option in options)
    model = () if "--model" in options else ("--model", str(chat_folder))
    answer = phasewalk("run", "the fox", *SHORT, *model, *options)
    assert (answer.code, answer.out) == (1, "")
    assert message in answer.err.splitlines()[-1]
    assert "Traceback" not in answer.err
