"""phasewalk doctor: what this machine can run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import Command

from gpu import OnnxEngine, engines
from phases.cli.doctor import OPTIONAL


def test_doctor_tells_what_there_is(phasewalk: Command) -> None:
    answer = phasewalk("doctor")
    assert answer.code == 0
    for what in ("engine numpy", "memory reads", "Graphviz", "import statemachine", "transformers", "TensorRT"):
        assert what in answer.out


def test_what_is_missing_comes_with_the_command_that_installs_it(
    phasewalk: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIONAL, "no-such-library", "phasewalk[some-extra]")
    answer = phasewalk("doctor")
    assert answer.code == 0
    assert "pip install 'phasewalk[some-extra]'" in " ".join(answer.out.split())


@pytest.mark.slow
def test_each_engine_is_held_against_numpy(phasewalk: Command) -> None:
    answer = phasewalk("doctor", "--verify")
    assert answer.code == 0
    lines = " ".join(answer.out.split())
    for name in engines():
        assert f"verdict {name} computes what numpy does" in lines
    assert "likeliest tokens 64 of 64 the same" in lines
    assert "allowed 1e-03" in lines


@pytest.mark.slow
@pytest.mark.skipif("onnx" not in engines(), reason="needs ONNX Runtime")
def test_one_engine_is_verified_alone_and_a_wrong_one_is_found(
    phasewalk: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = phasewalk("doctor", "--verify", "--engine", "onnx")
    assert answer.code == 0
    assert "engine numpy" not in answer.out
    monkeypatch.setattr("gpu.onnx.engine.OnnxEngine.decode", skip_every_token)
    answer = phasewalk("doctor", "--verify", "--engine", "onnx")
    assert answer.code == 1
    assert "the onnx engine failed its self-check" in " ".join(answer.out.split())
    monkeypatch.setattr("gpu.load.check_engine", lambda engine: None)
    answer = phasewalk("doctor", "--verify", "--engine", "onnx")
    assert answer.code == 1
    assert "verdict onnx does not compute what numpy does" in " ".join(answer.out.split())


def skip_every_token(engine: OnnxEngine, rows: Sequence[int]) -> None:
    for row in rows:
        engine.kv_cache.commit(row, 1)


@pytest.mark.skipif("tensorrt" in engines(), reason="it can run here")
def test_an_engine_that_cannot_run_here_is_no_success(phasewalk: Command) -> None:
    answer = phasewalk("doctor", "--verify", "--engine", "tensorrt")
    assert answer.code == 1
    lines = " ".join(answer.out.split())
    assert "the engine tensorrt cannot run here" in lines
    assert "pip install" in lines or "driver" in lines


def test_what_makes_no_sense_is_a_wrong_command_line(phasewalk: Command) -> None:
    for arguments in (["--verify", "--engine", "abacus"], ["--engine", "numpy"]):
        assert phasewalk("doctor", *arguments).code == 2


@pytest.mark.gpu
@pytest.mark.skipif("tensorrt" not in engines(), reason="needs a GPU that TensorRT runs on")
def test_tensorrt_is_verified_on_the_device(phasewalk: Command) -> None:
    answer = phasewalk("doctor", "--verify", "--engine", "tensorrt")
    assert answer.code == 0, answer.out
    assert "verdict tensorrt computes what numpy does" in " ".join(answer.out.split())


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in engines(), reason="needs a device")
def test_doctor_tells_of_the_device(phasewalk: Command) -> None:
    answer = phasewalk("doctor")
    assert answer.code == 0
    for what in ("engine cuda", "device", "compute capability", "driver", "memory free", "decode paths", "per-op"):
        assert what in answer.out


def test_doctor_warns_of_another_owner_of_our_import_names(
    phasewalk: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "python_statemachine-3.2.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: python-statemachine\nVersion: 3.2.2\n")
    (info / "top_level.txt").write_text("statemachine\n")
    (info / "RECORD").write_text("statemachine/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = phasewalk("doctor")
    assert answer.code == 1
    assert "also owned by python-statemachine" in answer.out
