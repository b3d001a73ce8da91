"""What cannot fit into memory is refused in one line that says why, before anything large is touched."""

import gc
import json
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from checkpoints import tiny_config, write_checkpoint

from gpu import CapacityError, CheckpointError, ModelConfig, expected_tensors, load_engine
from gpu.memory import machine_memory, size

pytestmark = pytest.mark.slow

MEMORY = machine_memory()


def sparse_checkpoint(folder: Path, **overrides: int) -> Path:
    """A checkpoint whose weights are a hole in the disk: as large as one likes, and all zero."""
    config = tiny_config(**overrides)
    header, start = {}, 0
    for name, shape in expected_tensors(ModelConfig.from_json(config)).items():
        count = 1
        for side in shape:
            count *= side
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, start + 2 * count]}
        start += 2 * count
    text = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return folder


def fitting(error: Exception, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)(?: or \w+=\d+)? would fit", str(error))
    assert found, error
    return int(found[1])


@pytest.mark.parametrize("rows", [10**9, 10**30, 10**400])
def test_rows_beyond_memory_are_refused_with_what_would_fit(tmp_path: Path, rows: int) -> None:
    folder = write_checkpoint(tmp_path)
    with pytest.raises(CapacityError, match=f"max_batch={rows} and capacity=128 take .* for the KV cache") as caught:
        load_engine(folder, max_batch=rows)
    assert "\n" not in str(caught.value)
    fits = fitting(caught.value, "max_batch")
    assert 0 < fits < MEMORY / (128 * 2 * 2 * 2 * 8 * 4)
    with pytest.raises(CapacityError, match="take"):
        load_engine(folder, max_batch=2 * fits)


def test_a_capacity_beyond_memory_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, max_position_embeddings=1 << 27)
    with pytest.raises(CapacityError, match=r"capacity=134217728 take .* this machine has .* would fit") as caught:
        load_engine(folder, capacity=1 << 27)
    assert load_engine(folder, capacity=min(fitting(caught.value, "capacity"), 1 << 16)).kv_cache.capacity > 1000


def test_weights_beyond_memory_are_refused_unread(tmp_path: Path) -> None:
    width = 1 << 20
    layers = 1 + MEMORY // (4 * 3 * 4096 * width)
    folder = sparse_checkpoint(tmp_path, hidden_size=4096, intermediate_size=width, num_hidden_layers=layers)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"the weights take [\d.]+ GiB in the engine's memory, this machine has"):
        load_engine(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_nothing_is_left_of_what_was_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)

    def refuse() -> None:
        with pytest.raises(CapacityError):
            load_engine(folder, max_batch=10**9)
        gc.collect()

    refuse()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        refuse()
    left = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert left < 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on a process's memory")
@pytest.mark.parametrize("options", ["max_batch=1500", "max_batch=1, capacity=128"])
def test_what_the_system_refuses_is_told_in_the_same_words(tmp_path: Path, options: str) -> None:
    """The limit is not to be seen beforehand here: the allocation itself fails."""
    folder = sparse_checkpoint(tmp_path, hidden_size=4096, intermediate_size=4096, vocab_size=1 << 14)
    code = f"""
import resource, gpu, gpu.memory
from gpu.numpy import engine
gpu.memory.machine_memory = lambda: 1 << 60
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    gpu.load_engine({str(folder)!r}, "numpy", {options})
except (gpu.CapacityError, gpu.CheckpointError) as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    if "1500" in options:
        assert line.startswith("CapacityError max_batch=1500 and capacity=128 take ")
    else:
        assert re.fullmatch(r"CheckpointError the system refused the [\d.]+ MiB that the weights take", line)


def test_sizes_are_written_as_a_person_reads_them() -> None:
    assert [size(count) for count in (0, 1023, 1536, 5 << 30, 3 << 80)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.0 GiB", "1048576.0 PiB",
    ]  # fmt: skip
