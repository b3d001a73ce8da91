"""phasewalk doctor: what this machine can run."""

from pathlib import Path

import pytest
from command_line import Command

from gpu import engines
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
