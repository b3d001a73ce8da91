"""phasewalk export: a folder that loads, or one clear line and nothing left behind."""

from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from command_line import Command, finish

from gpu import engines, load_engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("onnx" not in engines(), reason="onnx or onnxruntime is not installed"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_makes_a_folder_and_says_where(phasewalk: Command, checkpoint: Path, dtype: str) -> None:
    answer = phasewalk("export", str(checkpoint), "-o", "made", "--dtype", dtype, "--capacity", "64")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("made: model.onnx and its data, ")
    assert [path.name for path in Path().iterdir()] == ["made"]
    assert sorted(path.name for path in Path("made").iterdir()) == ["model.onnx", "weights.bin"]
    if dtype == "float32":
        load_engine(checkpoint, "onnx", export="made", capacity=64).close()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_it_quantises(phasewalk: Command, checkpoint: Path, quantize: str) -> None:
    answer = phasewalk("export", str(checkpoint), "-o", "made", "--quantize", quantize, "--capacity", "64")
    assert (answer.code, answer.err) == (0, "")
    answer = phasewalk("export", str(checkpoint), "-o", "plain", "--quantize", "none")
    assert (answer.code, answer.err) == (0, "")
    plain, made = (sum(file.stat().st_size for file in Path(name).iterdir()) for name in ("plain", "made"))
    assert made != plain
    with load_engine(checkpoint, "onnx", export="made", capacity=64, quantize=quantize) as engine:  # type: ignore[attr-defined]
        assert engine.environment()["quantize"] == quantize


def test_it_says_which_adapters_the_graph_takes(phasewalk: Command, checkpoint: Path) -> None:
    answer = phasewalk("export", str(checkpoint), "-o", "made", "--lora-rank", "8")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("made: model.onnx and its data, ")
    assert answer.out.endswith("; takes adapters of rank 1 to 8\n")
    load_engine(checkpoint, "onnx", export="made", max_batch=2).close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{empty}", "-o", "made"], 1, "has no config.json: is it the folder of a model?"),
        (["nowhere", "-o", "made"], 1, "nowhere"),
        (["{model}", "-o", "{empty}"], 2, "exists already; choose another name or remove it"),
        (["{model}", "-o", "no/such/place"], 2, "cannot be made: No such file or directory"),
        (["{model}", "-o", "made", "--dtype", "int3"], 2, "'int3' is not one of 'float32', 'bfloat16', 'float16'"),
        (["{model}", "-o", "made", "--quantize", "fp8"], 2, "'fp8' is not one of 'none', 'int8', 'int4'"),
        (
            ["{model}", "-o", "made", "--quantize", "int4", "--dtype", "float16"],
            1,
            "int4 weights are multiplied by float32 numbers: leave out float16, or int4",
        ),
        (["{model}", "-o", "made", "--capacity", "129"], 1, "a capacity of 129 was asked for, the model has 128"),
        (["{model}", "-o", "made", "--capacity", "0"], 2, "greater than or equal to 1"),
        (["{model}", "-o", "made", "--max-batch", "0"], 2, "greater than or equal to 1"),
        (["{model}", "-o", "made", "--lora-rank", "0"], 2, "greater than or equal to 1"),
        (["{model}", "-o", "made", "--lora-rank", "-4"], 2, "greater than or equal to 1"),
        (
            ["{model}", "-o", "made", "--lora-rank", "33"],
            1,
            "a lora_rank of 33 was asked for, no change of this model's",
        ),
        (["{model}"], 2, "--output"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    phasewalk: Command, checkpoint: Path, tmp_path: Path, arguments: list[str], code: int, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    places = {"empty": str(tmp_path / "empty"), "model": str(checkpoint)}
    answer = phasewalk("export", *(argument.format(**places) for argument in arguments))
    assert answer.code == code
    assert said in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_command_line_runs_the_engine(chat_folder: Path) -> None:
    found = [
        finish("run", "the quick", "--model", str(chat_folder), "--engine", name, "--temperature", "0").out
        for name in ("numpy", "onnx")
    ]
    assert found[0] == found[1]
    assert found[0].strip()


def test_a_damaged_checkpoint_leaves_no_export(phasewalk: Command, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    answer = phasewalk("export", str(folder), "-o", "made")
    assert answer.code == 1
    assert "model.safetensors" in answer.err
    assert not Path("made").exists()
