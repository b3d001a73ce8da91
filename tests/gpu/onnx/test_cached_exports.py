"""The engine makes a checkpoint's export once: whole, whoever else makes it, is killed at it, or damages it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import Checkpoint, ExportError, ModelConfig, OnnxEngine, load_engine
from gpu.onnx import data
from gpu.onnx.export import export

pytestmark = pytest.mark.slow

LOAD = """
import sys
from gpu import load_engine
with load_engine(sys.argv[1], "onnx", max_batch=1, capacity=16) as engine:
    rows = engine.kv_cache.acquire(1)
    engine.write_prompt(rows[0], [1, 2, 3])
    engine.prefill(rows)
    engine.sample(rows)
    print(engine.sampled(rows))
"""


DONE = """
import sys
from gpu import load_engine
done = set()
load_engine(sys.argv[1], "onnx", max_batch=1, capacity=16, progress=lambda what, *_: done.add(what)).close()
print(sorted(done))
"""
WAITING = """
import sys
from gpu import load_engine
load_engine(sys.argv[1], "onnx", max_batch=1, capacity=16, progress=lambda what, *_: print(what)).close()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phasewalk" / "exports"


def load(folder: Path) -> list[str]:
    """Load it, and give what was done meanwhile."""
    done: list[str] = []
    load_engine(folder, "onnx", max_batch=2, progress=lambda what, *_: done.append(what)).close()
    return sorted(set(done))


READ, NOT_READ = ["reading weights", "starting ONNX Runtime"], ["starting ONNX Runtime"]


def test_it_is_made_once_for_any_rows_and_capacity(checkpoint: Path, cache: Path) -> None:
    assert load(checkpoint) == READ
    assert load(checkpoint) == NOT_READ
    for rows, capacity in ((1, 128), (5, 3)):
        load_engine(checkpoint, "onnx", max_batch=rows, capacity=capacity).close()
    assert len([*cache.iterdir()]) == 1


def test_it_serves_engines_with_room_for_adapters_too(checkpoint: Path, cache: Path) -> None:
    for adapters in (None, 1, 2):
        load_engine(checkpoint, "onnx", adapters=adapters, capacity=16).close()
    assert len([*cache.iterdir()]) == 1


def test_another_checkpoint_has_another_one(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    load(checkpoint)
    assert load(write_checkpoint(tmp_path / "other", seed=1)) == READ
    assert len([*cache.iterdir()]) == 2


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
def test_a_damaged_one_is_made_again(checkpoint: Path, cache: Path, name: str) -> None:
    load(checkpoint)
    [folder] = cache.iterdir()
    os.truncate(folder / name, 100)
    assert load(checkpoint) == READ
    assert load(checkpoint) == NOT_READ
    (folder / name).unlink()
    assert load(checkpoint) == READ
    assert [*cache.iterdir()] == [folder]


def test_processes_that_make_it_at_once_all_have_it(checkpoint: Path, cache: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(checkpoint)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(said) == 1
    [folder] = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "weights.bin"]


def test_only_one_of_them_makes_it(tmp_path: Path, cache: Path) -> None:
    folder = write_checkpoint(tmp_path / "large", hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    command = [sys.executable, "-c", DONE, str(folder)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(process.communicate()[0] for process in started)
    waited = "['starting ONNX Runtime', 'waiting for another process that exports the model']\n"
    assert said[:1] == [f"{READ}\n"]
    assert {*said[1:]} <= {waited, f"{NOT_READ}\n"}  # who comes late finds it


def test_who_waits_for_one_that_is_killed_makes_it(tmp_path: Path, cache: Path) -> None:
    folder = write_checkpoint(tmp_path / "large", hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    first = subprocess.Popen([sys.executable, "-c", LOAD, str(folder)], stdout=subprocess.DEVNULL)
    while not (cache.is_dir() and [*cache.glob(".*.part/weights.bin")]):
        assert first.poll() is None, "it ended before it was caught at it"
    first.send_signal(signal.SIGSTOP)
    second = subprocess.Popen([sys.executable, "-u", "-c", WAITING, str(folder)], stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting for another process that exports the model\n"
    first.kill()  # and nobody has waited for its end yet
    assert "reading weights\n" in second.communicate()[0]
    assert second.returncode == 0
    first.wait()
    assert len([*cache.iterdir()]) == 1


def test_a_kill_in_the_middle_leaves_nothing_that_counts(tmp_path: Path, cache: Path) -> None:
    folder = write_checkpoint(tmp_path / "large", hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    process = subprocess.Popen([sys.executable, "-c", LOAD, str(folder)], stdout=subprocess.DEVNULL)
    while not (found := [*cache.glob(".*.part/weights.bin")] if cache.is_dir() else []):
        assert process.poll() is None, "it ended before it was caught at it"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert found[0].parent.is_dir()
    assert load(folder) == READ
    [whole] = cache.iterdir()  # what the killed one left is gone
    assert not whole.name.startswith(".")


def test_a_full_disk_leaves_nothing_behind(checkpoint: Path, cache: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails as it would on a full one."""
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code + LOAD, str(checkpoint)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ExportError: the export of the model cannot be kept in {cache} (File too large): make room" in done.stderr
    assert [*cache.iterdir()] == []


def test_too_little_room_is_told_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu.onnx.export as module

    model = ModelConfig.from_folder(checkpoint)
    monkeypatch.setattr(module, "data_size", lambda *_: 2**60)  # no disk has so much
    with pytest.raises(ExportError, match=r"the export takes 1024\.0 PiB, and .* are free where .*: make room"):
        export(Checkpoint.open(checkpoint, model), model, tmp_path / "export")
    assert [*tmp_path.iterdir()] == []


def test_a_cache_that_cannot_be_made_is_told(checkpoint: Path, cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where a folder must be")
    with pytest.raises(ExportError, match=r"cannot be kept in .* \(.*\): make room there, or set XDG_CACHE_HOME"):
        load(checkpoint)


def test_what_stands_there_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    model = ModelConfig.from_folder(checkpoint)
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        target = tmp_path / f"{len([*tmp_path.iterdir()])}"
        make(target)
        with pytest.raises(ExportError, match="exists already"):
            export(Checkpoint.open(checkpoint, model), model, target)
        assert os.path.lexists(target)


def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "large", hidden_size=512, intermediate_size=2048, num_hidden_layers=24, shards=6
    )
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from gpu import Checkpoint, ModelConfig\n"
        "from gpu.onnx.export import export\n"
        "folder, target = map(Path, sys.argv[1:])\n"
        "model = ModelConfig.from_folder(folder)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "export(Checkpoint.open(folder, model), model, target)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "export"], capture_output=True, text=True, check=True
    )
    model = ModelConfig.from_folder(folder)
    assert data.data_size(model, "float32") > 250 * 2**20
    assert int(done.stdout) * 1024 < 60 * 2**20  # a tensor has 4 MiB, and is there up to three times


def test_an_engine_that_decoded_together_is_closed_whole(checkpoint: Path, cache: Path) -> None:
    engine = load_engine(checkpoint, "onnx", max_batch=2)
    assert isinstance(engine, OnnxEngine)
    rows = engine.kv_cache.acquire(2)
    for row in rows:
        engine.write_prompt(row, [1])
    engine.prefill(rows)
    engine.decode(rows)
    engine.close()
    assert engine._session is None
    assert engine._bindings == {}
    assert engine._prompt_bindings == {}
    with pytest.raises(RuntimeError, match="closed"):
        engine.decode(rows)
