"""Loading: names, numbers and places that make sense, and clear errors for the others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import CapacityError, CheckpointError, NumpyEngine, engines, load_engine, measure_read_bandwidth
from gpu.checkpoint.hub import resolve_checkpoint


def test_auto_is_numpy(checkpoint: Path) -> None:
    assert engines() == ("numpy",)
    engine = load_engine(checkpoint)
    assert isinstance(engine, NumpyEngine)
    assert (engine.name, engine.synchronous) == ("numpy", True)
    assert (engine.kv_cache.rows, engine.kv_cache.capacity) == (8, 128)


def test_the_default_capacity_is_bounded(tmp_path: Path) -> None:
    engine = load_engine(write_checkpoint(tmp_path, max_position_embeddings=100_000), max_batch=2)
    assert engine.kv_cache.capacity == 4096


def test_nonsense_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no engine 'cuda': expected auto or one of numpy"):
        load_engine(checkpoint, "cuda")
    with pytest.raises(CapacityError, match="capacity of 129 was asked for, the model has 128 positions"):
        load_engine(checkpoint, capacity=129)
    for name in ("max_batch", "capacity", "threads"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            load_engine(checkpoint, **{name: 0})  # type: ignore[arg-type]


def test_a_sliding_window_must_cover_the_capacity(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "mistral", sliding_window=32)
    with pytest.raises(CheckpointError, match=r"window of 32 tokens, less than the capacity of 128.*capacity=32"):
        load_engine(folder)
    assert load_engine(folder, capacity=32).kv_cache.capacity == 32


def test_the_model_is_refused_before_any_weight_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="MambaForCausalLM"):
        load_engine(tmp_path)


def test_progress_reaches_the_end(checkpoint: Path) -> None:
    steps: list[tuple[int, int]] = []
    load_engine(checkpoint, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 0


def test_places_that_are_none(tmp_path: Path) -> None:
    assert resolve_checkpoint(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file: name the folder"):
        resolve_checkpoint(tmp_path / "file")
    for missing in (tmp_path / "missing", str(tmp_path / "missing"), "./missing", "../a/b", "a/b/c", ""):
        with pytest.raises(CheckpointError, match="no folder"):
            resolve_checkpoint(missing)


def test_the_hub_offline(tmp_path: Path) -> None:
    """A model in the cache is found without a network, one that is not there is refused."""
    snapshot = tmp_path / "hub" / "models--owner--cached" / "snapshots" / "0"
    write_checkpoint(snapshot)
    refs = tmp_path / "hub" / "models--owner--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0")
    code = (
        "import gpu\n"
        "print(gpu.load_engine('owner/cached').model.layers)\n"
        "try:\n    gpu.resolve_checkpoint('owner/missing')\n"
        "except gpu.CheckpointError as error:\n    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    layers, error = done.stdout.splitlines()
    assert layers == "2"
    assert "'owner/missing'" in error
    assert "HF_HUB_OFFLINE" in error


def test_importing_gpu_is_light() -> None:
    code = (
        "import sys, gpu; print(sorted({'torch', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < measure_read_bandwidth() < 1e13
