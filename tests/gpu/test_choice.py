"""`auto`: the fastest engine that runs here and has what is asked for, chosen by a rule that is told in a line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import Checkpoint, EngineChoice, ModelConfig, OptionError, choose_engine, engines, load_engine
from gpu.load import _ENGINES, _MISSING
from gpu.onnx.cached import cached_export

pytestmark = pytest.mark.slow

LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "max_position_embeddings": 64}  # 72 MiB
without_gpu = pytest.mark.skipif("cuda" in engines(), reason="there is a GPU here")
with_onnx = pytest.mark.skipif("onnx" not in engines(), reason="onnx or onnxruntime is not installed")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("large"), **LARGE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phasewalk" / "exports"


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let no engine but these run here, whatever the machine has."""
    for name in _MISSING:
        answer = None if name in names else f"{name} is far away: pip install {name}"
        monkeypatch.setitem(_MISSING, name, lambda answer=answer: answer)


@with_onnx
def test_the_fastest_that_runs_is_chosen_and_what_is_faster_is_told(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "cuda", "onnx")
    assert str(choose_engine(large)) == "engine cuda: the fastest that runs here"
    only(monkeypatch, "onnx")
    assert choose_engine(large) == EngineChoice("onnx", "the fastest that runs here; not cuda: cuda is far away")
    only(monkeypatch)
    assert choose_engine(large).name == "numpy"
    assert choose_engine(large).why.endswith("; not cuda: cuda is far away; not onnx: onnx is far away")


def test_a_small_model_does_not_wait_for_onnx_runtime(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "onnx")
    choice = choose_engine(checkpoint)
    assert choice.name == "numpy"
    assert re.search(
        r"; not onnx: it starts later, and [\d.]+ KiB of weights are too few to make up for that$", choice.why
    )
    assert "\n" not in str(choice)


@without_gpu
@with_onnx
def test_what_is_loaded_is_what_is_chosen(large: Path, checkpoint: Path, cache: Path) -> None:
    for folder, options in ((large, {}), (checkpoint, {}), (checkpoint, {"quantize": "int4"})):
        with load_engine(folder, max_batch=1, **options) as engine:  # type: ignore[arg-type]
            assert engine.name == choose_engine(folder, **options).name  # type: ignore[arg-type]
    assert engine.environment()["quantize"] == "int4"


@pytest.mark.parametrize(
    ("asked", "name", "why"),
    [
        ({"quantize": "int8"}, "cuda", "the fastest that runs here with int8 weights"),
        ({"quantize": "int4"}, "onnx", "here with int4 weights; not cuda: its weights are bfloat16 or int8 or fp8"),
        ({"quantize": [None, "int8", "int4"]}, "onnx", "with int8 weights and int4 weights; not cuda"),
        ({"quantize": [None]}, "cuda", "the fastest that runs here"),
        ({"decode": "per-op", "timeout": 3}, "cuda", "with the option decode and the option timeout"),
        ({"decode": "fitted"}, "tensorrt", "not cuda: it decodes per-op or persistent; not onnx: it has no option dec"),
        (
            {"decode": "together"},
            "numpy",
            "with the option decode; not cuda: it decodes per-op or persistent; not onnx",
        ),
        ({"export": "folder"}, "onnx", "with the option export; not cuda: it has no option export"),
        ({"decode": None, "export": None, "quantize": None}, "cuda", "the fastest that runs here"),
    ],
)
def test_an_engine_has_what_is_asked_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], name: str, why: str
) -> None:
    only(monkeypatch, "cuda", "onnx", "tensorrt")
    choice = choose_engine(checkpoint, **asked)  # type: ignore[arg-type]
    assert choice.name == name
    assert why in choice.why


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantize": "int8"}, "no engine that runs here has int8 weights: cuda has, and cannot run here: cuda is far "
                               "away: pip install cuda; onnx has, and cannot run here: onnx is far away: pip"),
        ({"quantize": "int4"}, "here has int4 weights: onnx has, and cannot run here: onnx is far away: pip"),
        ({"decode": "per-op"}, "here has the option decode: cuda has, and cannot run here: cuda is far away"),
        ({"decode": "fitted"}, "here has the option decode: tensorrt has, and cannot run here: tensorrt is far away"),
        ({"decode": "at a run"}, "no engine has the option decode: cuda: it decodes per-op or persistent; onnx: it has "
                                 "no option decode; numpy: it decodes alone or together; tensorrt: it decodes whole"),
        ({"quantize": "int3"}, "no engine has int3 weights: cuda: its weights are bfloat16 or int8 or fp8; onnx: its "
                               "weights are float32 or int8 or int4; numpy: its weights are float32"),
        ({"quantize": ["int4", "fp8"]}, "no engine has int4 weights and fp8 weights: cuda"),
        ({"spin": 1}, "no engine has the option spin: cuda: it has no option spin; onnx"),
    ],
)  # fmt: skip
def test_what_none_has_here_is_told_with_who_would(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], message: str
) -> None:
    only(monkeypatch)
    with pytest.raises(OptionError, match=re.escape(message)):
        load_engine(checkpoint, **asked)  # type: ignore[arg-type]


@with_onnx
def test_onnx_is_left_alone_where_its_export_cannot_be_kept(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu.onnx.cached as module

    only(monkeypatch, "onnx")
    assert choose_engine(large).name == "onnx"
    with monkeypatch.context() as full:
        full.setattr(module, "data_size", lambda *_: 2**60)  # no disk has so much
        choice = choose_engine(large)
        assert choice.name == "numpy"
        assert re.search(
            rf"not onnx: an export of the model, 1024.0 PiB, cannot be kept in {cache}: .* are free", choice.why
        )
        model = ModelConfig.from_folder(large)
        full.undo()
        cached_export(Checkpoint.open(large, model), model)
        full.setattr(module, "data_size", lambda *_: 2**60)
        assert choose_engine(large).name == "onnx"  # it is there already
    cache.rename(cache.with_name("away"))
    cache.write_text("a file where a folder must be")
    assert choose_engine(large).why.endswith(f"cannot be kept in {cache}: it cannot be written to")


def test_a_choice_starts_nothing_and_reads_no_weights(large: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((large / "config.json").read_bytes())
    code = (
        "import sys, gpu\n"
        "print(gpu.choose_engine(sys.argv[1]).name in gpu.engines(), {'onnxruntime', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_the_reference_is_the_last_to_be_chosen_as_it_runs_everywhere() -> None:
    assert list(_ENGINES)[-2:] == ["numpy", "tensorrt"]  # which is only for those who ask for it
    assert "numpy" in engines()
    assert "numpy" not in _MISSING
