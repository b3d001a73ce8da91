"""Loading onto a device: every bit where it belongs, in little memory, and nothing left behind when it fails."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import emulated_device
import numpy as np
import pytest
from checkpoints import FAMILIES, tiny_config, write_checkpoint, write_safetensors
from codes import KINDS, SIZES, quantised, untiled_codes
from emulated_device import CAN_EMULATE, EmulatedDevice

from gpu import Checkpoint, CheckpointError, CudaEngine, ModelConfig, expected_tensors
from gpu.checkpoint.safetensors import read_header
from gpu.cuda import loading
from gpu.cuda.arena import Arena, Array
from gpu.cuda.bfloat16 import widened
from gpu.cuda.device import Device, Lines
from gpu.cuda.shape import Shape
from gpu.cuda.staging import Staging
from gpu.cuda.tiles import tiled, tiled_shape
from gpu.cuda.watchdog import Watchdog
from gpu.cuda.weights import Place, write_random

pytestmark = pytest.mark.slow
needs_emulation = pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@pytest.fixture
def kernels(bare: Device) -> Device:
    """The device under test with the kernels of a tiny model."""
    bare.build(shape_of().modules(bare.capability), compiling=lambda: None)
    return bare


def shape_of(quantize: str | None = None, **fields: int) -> Shape:
    return Shape(ModelConfig.from_json(tiny_config(**fields)), rows=1, capacity=32, quantize=quantize)


def fetched(device: Device, lines: Lines, dtype: type) -> np.ndarray:
    address, found = device.pinned(lines.width)
    device.copy(lines, Lines(address, lines.width))
    Watchdog(device).wait(device.record(), "a test")
    return found.view(dtype).copy()


def all_kinds_of_numbers(count: int, dtype: str) -> np.ndarray:
    """Bits of every kind: zeros, the smallest numbers, ties, infinities and NaN of either sign among them."""
    random = np.random.default_rng(count)
    if BYTES[dtype] == 2:
        return random.permutation(np.resize(np.arange(1 << 16, dtype=np.uint16), count))
    bits = random.integers(0, 1 << 32, count, dtype=np.uint32)
    bits[::3] &= 0xFFFF8000  # ties
    bits[::5] |= 0x7F800000  # infinities and NaN
    bits[::7] &= 0x807FFFFF  # zeros and what is nearly none
    return bits


def as_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    return {"F32": lambda: bits.view(np.float32), "F16": lambda: bits.view(np.float16).astype(np.float32),
            "BF16": lambda: widened(bits)}[dtype]()  # fmt: skip


def write_raw(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """Write a safetensors file of tensors that are given as bits; the library keeps no NaN of every kind."""
    header, start = {}, 0
    for name, (dtype, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": bits.shape, "data_offsets": [start, start + bits.nbytes]}
        start += bits.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, bits in tensors.values():
            file.write(bits.tobytes())


def loaded(
    device: Device, path: Path, plan: dict[str, Array], places: dict[str, Place], slot_size: int, quantize: bool = False
) -> Arena:
    arena = Arena(device, plan)
    checkpoint = Checkpoint(read_header(path))
    loading.load(
        device,
        checkpoint,
        arena,
        places,
        wait=lambda event: Watchdog(device).wait(event, "a test"),
        quantize=quantize,
        slot_size=slot_size,
    )
    assert checkpoint.done == checkpoint.total
    return arena


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 32), (17, 33), (97, 36), (30, 1000), (300, 257)])
@pytest.mark.parametrize("slot_size", [252, 1 << 20])
def test_a_matrix_has_the_bits_that_the_host_gives_it(
    kernels: Device, tmp_path: Path, dtype: str, rows: int, columns: int, slot_size: int
) -> None:
    """However it is cut into pieces, which end in the middle of rows."""
    bits = all_kinds_of_numbers(rows * columns, dtype).reshape(rows, columns)
    write_raw(tmp_path / "one", {"matrix": (dtype, bits)})
    plan = {"before": Array((64,), "int32"), "it": Array(tiled_shape(rows, columns), "bfloat16")}
    arena = loaded(kernels, tmp_path / "one", plan, {"matrix": Place("it")}, slot_size)
    with np.errstate(invalid="ignore"):
        expected = tiled(as_float32(bits, dtype))
    assert np.array_equal(fetched(kernels, arena.lines("it"), np.uint16), expected.reshape(-1))
    assert not fetched(kernels, arena.lines("before"), np.uint16).any()


def plan_of_codes(rows: int, columns: int) -> dict[str, Array]:
    return {"it": Array(tiled_shape(rows, columns), "uint8"), "it_scale": Array((-(-rows // 16) * 16,), "float32")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", BYTES)
def test_a_matrix_has_the_codes_that_the_host_gives_it(bare: Device, tmp_path: Path, dtype: str, kind: str) -> None:
    """However many rows a piece has; of one that is larger than a slot, slots become as large."""
    bare.build(shape_of(kind).modules(bare.capability), compiling=lambda: None)
    for rows, columns, slot_size in ((1, 1, 4), (17, 33, 252), (97, 36, 1 << 20), (300, 257, 252)):
        bits = all_kinds_of_numbers(rows * columns, dtype).reshape(rows, columns)
        bits[1::3] = all_kinds_of_numbers(columns, dtype)[0]
        bits[2::3] &= 0xBFFFBFFF if dtype == "F32" else 0xBFFF  # numbers only
        bits[2::9] = 0
        path = tmp_path / f"{rows}"
        write_raw(path, {"matrix": (dtype, bits)})
        arena = loaded(bare, path, plan_of_codes(rows, columns), {"matrix": Place("it")}, slot_size, quantize=True)
        found = untiled_codes(fetched(bare, arena.lines("it"), np.uint8), rows, columns, kind)
        scales = fetched(bare, arena.lines("it_scale"), np.float32)
        with np.errstate(all="ignore"):
            values, expected = quantised(as_float32(bits, dtype), kind)
        assert np.array_equal(scales[:rows], expected, equal_nan=True)
        right = np.isfinite(expected)
        assert np.array_equal(found[:rows, :columns][right], values[right])
        assert not found[rows:].any()
        assert not found[:, columns:].any()
        assert not scales[rows:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_is_the_nearest_ties_to_even(bare: Device, tmp_path: Path, kind: str) -> None:
    """All codes, what lies halfway between two of them, and the numbers next to that; each of both signs."""
    sizes = SIZES[kind].astype(np.float32)
    halves = (sizes[1:] + sizes[:-1]) / 2
    values = np.concatenate([sizes, halves, *(np.nextafter(halves, to, dtype=np.float32) for to in (0, 999))])
    row = np.concatenate([values, -values]).astype(np.float32)
    matrix = np.stack([row, row * 2**20])  # the largest is the largest code: the scale is a power of two
    write_raw(tmp_path / "one", {"matrix": ("F32", matrix.view(np.uint32))})
    bare.build(shape_of(kind).modules(bare.capability), compiling=lambda: None)
    plan = plan_of_codes(*matrix.shape)
    arena = loaded(bare, tmp_path / "one", plan, {"matrix": Place("it")}, 1 << 20, quantize=True)
    found = untiled_codes(fetched(bare, arena.lines("it"), np.uint8), *matrix.shape, kind)[:2, : len(row)]
    assert fetched(bare, arena.lines("it_scale"), np.float32)[:2].tolist() == [1, 2**20]
    even = [sizes[i + i % 2] for i in range(len(halves))]
    expected = np.concatenate([sizes, even, sizes[:-1], sizes[1:]])
    for each in found:
        assert np.array_equal(each, np.concatenate([expected, -expected]))
        assert len(np.unique(each)) == 2 * len(sizes) - 1


@pytest.mark.parametrize("columns", [1, 40])
@pytest.mark.parametrize("slot_size", [100, 1 << 20])
def test_rows_are_joined_and_put_in_order(kernels: Device, tmp_path: Path, columns: int, slot_size: int) -> None:
    """Queries and keys in pairs, values below; gate and up in turns; matrices and biases alike."""
    random = np.random.default_rng(0)
    heads = {"q": 4, "k": 2, "v": 2}  # of 6 rows
    given = {name: random.standard_normal((count * 6, columns)).astype(np.float32) for name, count in heads.items()}
    given |= {name: random.standard_normal((21, columns)).astype(np.float32) for name in ("gate", "up")}
    vectors = columns == 1
    write_raw(
        tmp_path / "all",
        {name: ("F32", values.reshape(-1) if vectors else values) for name, values in given.items()},
    )
    pairs = [0, 3, 1, 4, 2, 5]
    paired = {name: given[name].reshape(-1, 6, columns)[:, pairs].reshape(-1, columns) for name in "qk"}
    expected = {
        "qkv": np.concatenate([paired["q"], paired["k"], given["v"]]),
        "gate_up": np.stack([given["gate"], given["up"]], axis=1).reshape(-1, columns),
    }
    places = {
        "q": Place("qkv", half=3), "k": Place("qkv", 24, half=3), "v": Place("qkv", 36),
        "gate": Place("gate_up", 0, step=2), "up": Place("gate_up", 1, step=2),
    }  # fmt: skip
    plan = {
        name: Array((len(values),), "float32") if vectors else Array(tiled_shape(*values.shape), "bfloat16")
        for name, values in expected.items()
    }
    arena = loaded(kernels, tmp_path / "all", plan, places, slot_size)
    for name, values in expected.items():
        if vectors:
            assert np.array_equal(fetched(kernels, arena.lines(name), np.float32), values[:, 0])
        else:
            assert np.array_equal(fetched(kernels, arena.lines(name), np.uint16), tiled(values).reshape(-1))


@pytest.mark.parametrize("dtype", BYTES)
def test_a_vector_keeps_every_number(kernels: Device, tmp_path: Path, dtype: str) -> None:
    bits = all_kinds_of_numbers(70_001, dtype)
    write_raw(tmp_path / "one", {"vector": (dtype, bits)})
    plan = {"it": Array((70_001 + 15,), "float32")}
    arena = loaded(kernels, tmp_path / "one", plan, {"vector": Place("it")}, 1000)
    found = fetched(kernels, arena.lines("it"), np.float32)
    with np.errstate(invalid="ignore"):
        expected = as_float32(bits, dtype)
    assert np.array_equal(found[:70_001], expected, equal_nan=True)
    assert np.array_equal(np.signbit(found[:70_001]), np.signbit(expected))
    assert not found[70_001:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_random_codes_are_as_wide_as_random_weights_and_padded_with_zeros(bare: Device, kind: str) -> None:
    shape = shape_of(kind, hidden_size=200, intermediate_size=333, vocab_size=1001)
    bare.build(shape.modules(bare.capability), compiling=lambda: None)
    arena = Arena(bare, shape.weights())
    write_random(bare, shape, arena, Staging(bare, Watchdog(bare)))
    for name, array in shape.weights().items():
        if array.dtype != "uint8":
            continue
        assert arena.at(f"{name}_scale") == arena.at(name) + array.nbytes  # where kernels look for it
        product = shape.products["head" if name == "embedding" else name.split(".")[-1]]
        codes = untiled_codes(fetched(bare, arena.lines(name), np.uint8), product.n, product.k, kind)
        scales = fetched(bare, arena.lines(f"{name}_scale"), np.float32)
        values = (codes[: product.n, : product.k] * scales[: product.n, None]).astype(np.float64)
        assert abs(values.std() / 0.02 - 1) < 5 / np.sqrt(values.size)
        assert 0.05 < abs(values).max() < 0.08
        assert not codes[product.n :].any()
        assert not codes[:, product.k :].any()
        assert not scales[product.n :].any()


def test_random_weights_are_the_same_each_time_and_padded_with_zeros(kernels: Device) -> None:
    shape = shape_of(hidden_size=200, intermediate_size=333, vocab_size=1001)
    arenas = [Arena(kernels, shape.weights()) for _ in range(3)]
    for arena, seed in zip(arenas, (0, 0, 1), strict=True):
        write_random(kernels, shape, arena, Staging(kernels, Watchdog(kernels)), seed=seed)
    seen = set()
    for name, array in shape.weights().items():
        first, again, other = (fetched(kernels, arena.lines(name), np.uint8) for arena in arenas)
        assert np.array_equal(first, again)
        if array.dtype == "float32":
            assert np.array_equal(first.view(np.float32), np.ones(array.shape, np.float32))
            continue
        assert not np.array_equal(first, other)
        product = shape.products["head" if name == "embedding" else name.split(".")[-1]]
        inside = tiled(np.ones((product.n, product.k), np.float32)).reshape(-1) != 0
        assert not first.view(np.uint16)[~inside].any()
        values = widened(first.view(np.uint16))[inside].astype(np.float64)
        error = 5 / np.sqrt(len(values))  # five standard deviations
        assert abs(values.mean()) < 0.02 * error
        assert abs(values.std() / 0.02 - 1) < error
        assert 0.05 < abs(values).max() < 0.08
        seen.add(first[:64].tobytes())
    assert len(seen) == sum(array.dtype == "bfloat16" for array in shape.weights().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_change_nothing(load: Callable[..., CudaEngine], tmp_path: Path, family: str) -> None:
    found = []
    for shards in (1, 3):
        engine = load(write_checkpoint(tmp_path / str(shards), family, dtype="float16", shards=shards), max_batch=1)
        [row] = engine.kv_cache.acquire(1)
        engine.write_prompt(row, [3, 1, 4])
        engine.prefill([row])
        found.append(engine.read_logits(row))
    assert np.array_equal(*found)


class Interrupt:
    """Interrupts loading as Ctrl-C does, once some of it is done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, doing: str, done: int, total: int) -> None:
        self.done = done
        if done > total // 2:
            raise KeyboardInterrupt


def cut_short(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


@needs_emulation
@pytest.mark.parametrize("how", ["interrupted", "cut short", "gone"])
def test_loading_that_fails_leaves_nothing_behind(tmp_path: Path, how: str) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    model = ModelConfig.from_folder(folder)
    interrupt = Interrupt()
    checkpoint = Checkpoint.open(folder, model, interrupt if how == "interrupted" else None)
    expected: tuple[type[BaseException], str | None] = (KeyboardInterrupt, None)
    if how == "cut short":
        cut_short(folder)
        expected = CheckpointError, "model-00002-of-00002.safetensors was cut short while it was read: fetch"
    elif how == "gone":
        (folder / "model-00001-of-00002.safetensors").unlink()
        expected = CheckpointError, "model-00001-of-00002.safetensors cannot be read"
    device, threads = EmulatedDevice(), threading.active_count()
    with pytest.raises(expected[0], match=expected[1]):
        CudaEngine(model, checkpoint, rows=2, capacity=32, device=device)
    assert device.reserved == 0
    assert threading.active_count() == threads


@needs_emulation
def test_a_first_load_tells_that_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated_device, "_BUILT", tmp_path / "built")
    folder = write_checkpoint(tmp_path / "model")
    model = ModelConfig.from_folder(folder)
    told: list[list[str]] = []
    for _ in range(2):
        doing: list[str] = []
        note: Callable[[str, int, int], None] = lambda what, done, total, to=doing: to.append(what)  # noqa: E731
        CudaEngine(model, Checkpoint.open(folder, model, note), rows=1, capacity=8, device=EmulatedDevice()).close()
        told.append(list(dict.fromkeys(doing)))
    assert told == [["compiling kernels (once for this model)", "reading weights"], ["reading weights"]]


@needs_emulation
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_tensor_is_ever_whole_in_the_memory_of_the_host(tmp_path: Path) -> None:
    """A matrix of 164 MB in its file, half of that on the device, in a process of its own."""
    fields = {"vocab_size": 40_000, "hidden_size": 1024, "num_hidden_layers": 1, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(dtype="float32", **fields)))
    zeros = {
        name: np.zeros(shape, np.float32) for name, shape in expected_tensors(ModelConfig.from_folder(tmp_path)).items()
    }
    write_safetensors(tmp_path / "model.safetensors", zeros)
    code = r"""
import re, sys
from pathlib import Path
from emulated_device import EmulatedDevice
from gpu import Checkpoint, CudaEngine, ModelConfig
from gpu.cuda.shape import Shape
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
folder = Path(sys.argv[1])
model, device = ModelConfig.from_folder(folder), EmulatedDevice()
modules = Shape(model, 1, 8).modules(device.capability)
device.build(modules, compiling=lambda: None)  # its threads need memory of their own
before = peak()
engine = CudaEngine(model, Checkpoint.open(folder, model), rows=1, capacity=8, device=device)
print(peak() - before - device.reserved)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin:/usr/local/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 20  # the ring takes 32 MiB
