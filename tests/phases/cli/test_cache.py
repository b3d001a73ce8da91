"""phasewalk cache: what is kept is counted, and cleared without harm to who is at work."""

import os
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from command_line import Command

from gpu import Engine, engines, load_engine
from gpu.user_cache import KINDS, clear, kept, user_cache
from gpu.whole_folder import whole_folder
from phases.cli.cache import Kind


@pytest.fixture(autouse=True)
def _in_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


def fill() -> None:
    (user_cache("exports") / "one").mkdir(parents=True)
    (user_cache("exports") / "one" / "weights.bin").write_bytes(bytes(3000))
    user_cache("kernels").mkdir()
    for name in ("a", "b"):
        (user_cache("kernels") / name).write_bytes(bytes(1000))


def test_every_kind_can_be_named() -> None:
    assert [kind.value for kind in Kind] == list(KINDS)


def test_what_is_kept_is_counted_and_cleared(phasewalk: Command) -> None:
    assert phasewalk("cache").out.count("0 bytes") == 4
    fill()
    lines = phasewalk("cache").out.splitlines()
    assert lines[0] == str(user_cache("kernels").parent)
    assert [line.split()[0] for line in lines[1:]] == ["kind", "exports", "kernels", "plans", "timings"]
    assert "1        2.9 KiB" in lines[2]
    assert "2        2.0 KiB" in lines[3]

    answer = phasewalk("cache", "exports", "--clear")
    assert (answer.code, answer.err) == (0, "")
    assert "cleared" in answer.out
    assert (kept("exports"), kept("kernels")) == ((0, 0), (2, 2000))
    assert phasewalk("cache", "--clear").code == 0
    assert (kept("exports"), kept("kernels")) == ((0, 0), (0, 0))
    assert phasewalk("cache", "letters").code == 2


def test_what_is_being_made_and_what_others_own_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("stays")
    user_cache("exports").mkdir(parents=True)
    with whole_folder(user_cache("exports") / "made") as folder:
        (folder / "half").write_text("half")
        (user_cache("exports") / "link").symlink_to(outside)
        assert kept("exports").entries == 1
        assert clear("exports").entries == 1
        assert (folder / "half").exists()
    assert (outside / "mine").read_text() == "stays"
    assert (user_cache("exports") / "made" / "half").exists()


@pytest.mark.slow
@pytest.mark.skipif("onnx" not in engines(), reason="onnx or onnxruntime is not installed")
def test_an_export_that_was_cleared_is_made_again_and_who_has_it_open_goes_on(tmp_path: Path) -> None:
    def first_token(engine: Engine) -> tuple[int, ...]:
        [row] = engine.kv_cache.acquire(1)
        engine.write_prompt(row, [1, 2, 3])
        engine.prefill([row])
        engine.sample([row])
        return engine.sampled([row])

    checkpoint = write_checkpoint(tmp_path / "model")
    with load_engine(checkpoint, "onnx", max_batch=1, capacity=16) as engine:
        assert clear("exports").entries == 1
        token = first_token(engine)
    with load_engine(checkpoint, "onnx", max_batch=1, capacity=16) as engine:
        assert kept("exports").entries == 1
        assert first_token(engine) == token


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions hold nobody back here")
def test_a_folder_that_cannot_be_cleared_is_told(phasewalk: Command) -> None:
    fill()
    user_cache("kernels").chmod(0o500)
    try:
        answer = phasewalk("cache", "kernels", "--clear")
    finally:
        user_cache("kernels").chmod(0o700)
    assert answer.code == 1
    assert "Permission denied" in answer.err
