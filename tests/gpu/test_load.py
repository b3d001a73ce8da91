"""Loading: names, numbers and places that make sense, and clear errors for the others."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import (
    CapacityError,
    CheckpointError,
    NumpyEngine,
    engine_device,
    engines,
    load_engine,
    measure_read_bandwidth,
    unavailable_engines,
)
from gpu.checkpoint.hub import resolve_checkpoint

pytestmark = pytest.mark.slow
without_gpu = pytest.mark.skipif("cuda" in engines(), reason="there is a GPU here")


@without_gpu
def test_auto_is_numpy_for_a_small_model_where_there_is_no_gpu(checkpoint: Path) -> None:
    assert engines()[-1] == "numpy"
    reason = unavailable_engines()["cuda"]
    assert "pip install 'phasewalk[cuda]'" in reason or "driver" in reason
    with pytest.raises(ValueError, match=f"the engine cuda cannot run here: {re.escape(reason)}"):
        load_engine(checkpoint, "cuda")
    assert engine_device("cuda") == engine_device("numpy") == {}
    engine = load_engine(checkpoint)
    assert isinstance(engine, NumpyEngine)
    assert (engine.name, engine.synchronous) == ("numpy", True)
    assert (engine.kv_cache.rows, engine.kv_cache.capacity) == (8, 128)


def test_the_default_capacity_is_bounded(tmp_path: Path) -> None:
    engine = load_engine(write_checkpoint(tmp_path, max_position_embeddings=100_000), max_batch=2)
    assert engine.kv_cache.capacity == 4096


def test_nonsense_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"no engine 'abacus': expected auto or one of .*numpy"):
        load_engine(checkpoint, "abacus")
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
    steps: list[tuple[str, int, int]] = []
    load_engine(checkpoint, progress=lambda *step: steps.append(step))
    doing, done, total = steps[-1]
    assert doing == "reading weights"
    assert done == total > 0


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
    heavy = {"torch", "transformers", "huggingface_hub", "safetensors", "cuda"}
    code = f"import sys, gpu; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < measure_read_bandwidth() < 1e13


def ask_the_hub(tmp_path: Path, endpoint: str) -> tuple[str, float]:
    """Ask for an unknown hub model in a process of its own; gives the error and the seconds after the imports."""
    code = (
        "import time, gpu, huggingface_hub\n"
        "begin = time.monotonic()\n"
        "try:\n    gpu.resolve_checkpoint('owner/missing')\n"
        "except gpu.CheckpointError as error:\n    print(time.monotonic() - begin, error)\n"
    )
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    seconds, _, error = done.stdout.strip().partition(" ")
    return error, float(seconds)


def test_a_hub_that_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        error, seconds = ask_the_hub(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "'owner/missing'" in error
    assert "cannot be fetched: check the name and the network" in error
    assert seconds < 4


def test_the_hub_is_asked_once_for_a_model_that_is_chosen_for_and_loaded(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--cached" / "snapshots" / "0"
    write_checkpoint(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    code = "import gpu; print(gpu.choose_engine('owner/cached').name, gpu.load_engine('owner/cached').model.layers)"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HOME": str(tmp_path), "PATH": "",
            "PYTHONPATH": str(Path.cwd()), "XDG_CACHE_HOME": str(tmp_path),
        }  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        asked = 0
        silent.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert done.stdout.split()[1] == "2"
    assert asked == 1


def test_a_hub_that_is_not_there_is_given_up_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    error, seconds = ask_the_hub(tmp_path, f"http://127.0.0.1:{port}")
    assert "cannot be fetched" in error
    assert seconds < 3


def test_a_hub_that_knows_no_such_model_says_so(tmp_path: Path) -> None:
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        error, _ = ask_the_hub(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "neither a folder nor a public hub model 'owner/missing'" in error


@pytest.mark.parametrize("name", ["~nosuchuser", "~nosuchuser/model", "a\0b", "x" * 5000, "\udcff", "\u210c/model"])
def test_names_that_are_none_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(CheckpointError) as error:
        resolve_checkpoint(name)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
