"""A device that hangs or breaks ends the work by name, and nothing that comes after hangs with it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from chat_checkpoint import write_chat_checkpoint
from checkpoints import write_checkpoint
from emulated_device import CAN_EMULATE, EmulatedDevice
from unreliable_device import UnreliableDevice

from gpu import Checkpoint, DeviceError, ModelConfig, engines, load_engine
from gpu.cuda.engine import CudaEngine
from gpu.cuda.watchdog import TIMEOUT, Watchdog
from phases import Generator
from phases.tokenizer import Tokenizer
from statemachine import PhaseError

emulated = pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
on_gpu = pytest.mark.skipif("cuda" not in engines(), reason="needs a device")


def load(folder: Path, device: EmulatedDevice, timeout: float = 0.05) -> CudaEngine:
    model = ModelConfig.from_folder(folder)
    checkpoint = Checkpoint.open(folder, model)
    return CudaEngine(model, checkpoint, rows=4, capacity=48, device=device, timeout=timeout)


def step(engine: CudaEngine, row: int) -> tuple[int, ...]:
    engine.sample([row])
    engine.decode([row])
    return engine.sampled([row])


def every_call(engine: CudaEngine, row: int) -> dict[str, Callable[[], object]]:
    return {
        "prefill": lambda: engine.prefill([row]),
        "decode": lambda: engine.decode([row]),
        "sample": lambda: engine.sample([row]),
        "sampled": lambda: engine.sampled([row]),
        "write_token": lambda: engine.write_token(row, 1),
        "read_logits": lambda: engine.read_logits(row),
        "keep_logits": lambda: engine.keep_logits(row),
        "export_kv": lambda: engine.export_kv(row, 0, 2),
        "peek": lambda: engine.peek(row),
    }


HANGS = (
    "the engine failed: sampled of row 0 has waited 0.05 s: decode of row 0 (per-op) or what was launched "
    f"before it is still running on the device; start another process, or allow it more with {TIMEOUT}"
)
BREAKS = (
    "the engine failed: unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED), in decode of row 0 (per-op) or before "
    "it; this process cannot use the device any more: start another"
)


@emulated
@pytest.mark.parametrize(("fault", "words"), [("hangs_at", HANGS), ("breaks_at", BREAKS)])
@pytest.mark.parametrize("kernel", ["embed", "sample"])
def test_the_work_fails_by_name_and_every_later_call_says_the_same(
    checkpoint: Path, fault: str, words: str, kernel: str
) -> None:
    engine = load(checkpoint, device := UnreliableDevice())
    [row] = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [1, 2, 3])
    engine.prefill([row])
    step(engine, row)
    setattr(device, fault, kernel)

    def two_steps() -> None:  # as the token is on its way to the host when decode begins
        step(engine, row)
        step(engine, row)

    with pytest.raises(DeviceError) as caught:
        two_steps()
    told = str(caught.value)
    assert told == (words.replace("decode", "sample") if (fault, kernel) == ("breaks_at", "sample") else words)
    for call in every_call(engine, row).values():
        with pytest.raises(DeviceError, match=re.escape(told)):
            call()
    engine.close()
    engine.close()
    for other in (load(checkpoint, EmulatedDevice()), load_engine(checkpoint, "numpy", capacity=48)):
        rows = other.kv_cache.acquire(1)
        other.write_prompt(rows[0], [1, 2, 3])
        other.prefill(rows)
        assert np.isfinite(other.read_logits(rows[0])).all()
        other.close()


@emulated
@pytest.mark.parametrize("call", ["read_logits", "export_kv", "peek"])
def test_a_read_does_not_wait_for_ever(checkpoint: Path, call: str) -> None:
    engine = load(checkpoint, device := UnreliableDevice())
    [row] = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [1, 2, 3])
    device.hangs_at = "embed"
    engine.prefill([row])
    with pytest.raises(DeviceError, match=rf"{call} of row 0 has waited .* prefill of row 0 .* is still running"):
        every_call(engine, row)[call]()
    engine.close()


@emulated
def test_what_is_written_does_not_wait_for_ever_and_neither_does_close(checkpoint: Path) -> None:
    engine = load(checkpoint, device := UnreliableDevice())
    device.hangs = True

    def more_than_the_ring_has_slots() -> None:
        for _ in range(100):
            engine.write_token(0, 1)

    with pytest.raises(DeviceError, match="a write has waited"):
        more_than_the_ring_has_slots()
    engine.close()
    engine = load(checkpoint, device := UnreliableDevice())
    device.hangs = True
    with pytest.raises(DeviceError, match="close has waited"):  # who finds it first is told
        engine.close()
    engine.close()


@emulated
def test_the_last_words_of_a_kernel_are_told(checkpoint: Path) -> None:
    engine = load(checkpoint, device := UnreliableDevice())
    _, words = device.pinned(12)
    engine._watchdog.last_words = words.view(np.uint32)
    [row] = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [1, 2, 3])
    words.view(np.uint32)[:] = 7, 131, 64
    device.breaks_at = "embed"
    with pytest.raises(DeviceError, match=r"; its last words: code 7, block 131, thread 64; this process cannot"):
        engine.prefill([row])


@emulated
def test_a_run_fails_by_name(tmp_path: Path) -> None:
    chat_folder, device = write_chat_checkpoint(tmp_path), UnreliableDevice()
    generator = Generator(load(chat_folder, device), Tokenizer.from_pretrained(chat_folder), folder=chat_folder)
    device.hangs_at = "sample"
    run = generator.start("Hello")
    with pytest.raises(PhaseError) as caught:
        run.start()
    assert isinstance(caught.value.__cause__, DeviceError)
    assert run.status == "failed"
    generator.close()


def test_the_bound_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    device = UnreliableDevice()
    monkeypatch.setenv(TIMEOUT, "0.02")
    device.hangs = True
    with pytest.raises(
        DeviceError, match=r"a test of rows 1, 2 has waited 0\.02 s: load \(per-op\) or .* is still running"
    ):
        Watchdog(device).wait(device.record(), "a test", [1, 2])
    for wrong in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv(TIMEOUT, wrong)
        with pytest.raises(ValueError, match=f"{TIMEOUT} is '{wrong}', expected seconds, more than 0"):
            Watchdog(device)


# --- the real one: in a process of its own, as it is of no use afterwards -----------------------------------------

PROGRAM = """
import sys
from cuda.core import LaunchConfig, ObjectCode, launch
from gpu import CudaEngine, DeviceError, load_engine
from gpu.cuda.compiler import compiled
from gpu.cuda.device import Module

folder, kernel = sys.argv[1:]
source = '''
extern "C" __global__ void writes_anywhere(unsigned* words) { *(unsigned*)0x10 = 1; }
extern "C" __global__ void spins(volatile unsigned* words) { while (words[0] != 99) {} }
extern "C" __global__ void traps(volatile unsigned* words) {
    words[0] = 7; words[1] = 131; words[2] = 64;
    __threadfence_system();
    __trap();
}
'''
engine = load_engine(folder, "cuda", max_batch=2, capacity=48, timeout=1.0)
device = engine._device
address, words = device.pinned(12)
engine._watchdog.last_words = words.view("uint32")
code = ObjectCode.from_cubin(compiled([Module(source, ())], device.architecture)[0])
extra = code.get_kernel(kernel)
engine._watchdog.owned.append((code, extra))
[row] = engine.kv_cache.acquire(1)
engine.write_prompt(row, [1, 2, 3])
engine.prefill([row])
engine.sample([row])
print("before", engine.sampled([row]))
launch(device._stream, LaunchConfig(grid=1, block=1), extra, address)
for call in (lambda: engine.sample([row]) or engine.sampled([row]), lambda: engine.decode([row]), engine.close):
    try:
        call()
        print("went on")
    except DeviceError as error:
        print("told:", error)
try:
    if kernel != "spins":
        load_engine(folder, "cuda", max_batch=1, capacity=48)
except DeviceError as error:
    print("another:", error)
with load_engine(folder, "numpy", max_batch=1, capacity=48) as other:
    [row] = other.kv_cache.acquire(1)
    other.write_prompt(row, [1, 2, 3])
    other.prefill([row])
    other.sample([row])
    print("the CPU goes on", other.sampled([row]))
"""


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("writes_anywhere", "illegal memory access"),
        ("spins", r"sampled of row 0 has waited 1 s: sample of row 0 \(per-op\) or .* is still running on the device"),
        ("traps", "launch failure .*; its last words: code 7, block 131, thread 64; this process cannot use"),
    ],
)
def test_a_real_device_that_fails_is_told_and_the_process_ends(tmp_path: Path, kernel: str, words: str) -> None:
    folder = write_checkpoint(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM), str(folder), kernel], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done
    before, first, second, closed, *another, last = done.stdout.splitlines()
    assert before.startswith("before")
    assert re.match(f"told: the engine failed: .*{words}", first), first
    assert second == first
    assert closed == "went on"
    assert last.startswith("the CPU goes on")
    if kernel != "spins":
        assert "cannot be used in this process any more, start another" in another[0]
