"""Who else is there: other threads, engines and processes, forks, and Ctrl-C at any launch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from emulated_device import CAN_EMULATE, EmulatedDevice
from unreliable_device import InterruptedDevice, UnreliableDevice

from gpu import CapacityError, Checkpoint, CheckpointError, CudaEngine, ModelConfig, engines
from phases import Generator, SamplingParams
from phases.tokenizer import Tokenizer

emulated = pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
on_gpu = pytest.mark.skipif("cuda" not in engines(), reason="needs a device")
Load = Callable[..., CudaEngine]
PROMPTS = ("the fox", "a token", "Hello", "one two three")
PARAMS = SamplingParams(temperature=0.9, seed=5, max_new_tokens=12)
DECODE = pytest.mark.parametrize("decode", ["per-op", "persistent"])
PATIENCE = 60  # seconds until a test that hangs has failed


def load_on(device: EmulatedDevice, folder: Path) -> CudaEngine:
    model = ModelConfig.from_folder(folder)
    return CudaEngine(model, Checkpoint.open(folder, model), rows=4, capacity=64, device=device, timeout=PATIENCE)


def generator_of(engine: CudaEngine, folder: Path) -> Generator:
    return Generator(engine, Tokenizer.from_pretrained(folder), folder=folder)


def texts_of(generator: Generator) -> list[list[int]]:
    return [generator.generate(prompt, PARAMS).output_ids[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for which there is a kernel of a whole step."""
    return write_chat_checkpoint(
        tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=512, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64,
    )  # fmt: skip


@pytest.mark.slow
def test_two_threads_on_one_engine_and_on_two_generate_what_one_does_alone(load: Load, chat: Path) -> None:
    one, two = (generator_of(load(chat, max_batch=4, capacity=64), chat) for _ in range(2))
    expected = texts_of(one)
    assert texts_of(two) == expected
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(texts_of, generator) for generator in (one, one, two, two)]
        assert [future.result(PATIENCE) for future in found] == [expected] * 4


@pytest.fixture
def slow() -> Iterator[UnreliableDevice]:
    device = UnreliableDevice()
    yield device
    device.open.set()


def waiting(
    engine: CudaEngine, device: UnreliableDevice, threads: ThreadPoolExecutor, row: int
) -> "Future[tuple[int, ...]]":
    """Have a thread wait for the token of a row; what it gives comes once the device is open again."""
    engine.write_prompt(row, [1, 2, 3])
    engine.prefill([row])
    device.open.clear()
    engine.sample([row])
    found = threads.submit(engine.sampled, [row])
    assert device.asked.wait(PATIENCE)
    return found


@emulated
def test_who_waits_for_a_row_keeps_nobody_from_another(chat: Path, slow: UnreliableDevice) -> None:
    engine = load_on(slow, chat)
    first, second = engine.kv_cache.acquire(2)
    with ThreadPoolExecutor(3) as threads:
        try:
            token = waiting(engine, slow, threads, first)
            slow.asked.clear()
            logits = threads.submit(engine.read_logits, first)
            assert slow.asked.wait(PATIENCE)

            def other() -> None:
                engine.write_prompt(second, [4, 5])
                engine.prefill([second])
                engine.sample([second])
                engine.decode([second])

            threads.submit(other).result(PATIENCE)
            assert not token.done()
            assert not logits.done()
        finally:
            slow.open.set()
        assert token.result(PATIENCE) == engine.sampled([first])
        assert (logits.result(PATIENCE) == engine.read_logits(first)).all()
    engine.close()


@emulated
def test_an_engine_that_is_closed_while_a_thread_waits_ends_the_wait(chat: Path, slow: UnreliableDevice) -> None:
    engine = load_on(slow, chat)
    rows = engine.kv_cache.acquire(1)
    with ThreadPoolExecutor(2) as threads:
        try:
            token = waiting(engine, slow, threads, rows[0])
            closing = threads.submit(engine.close)
        finally:
            slow.open.set()
        closing.result(PATIENCE)
        try:
            assert len(token.result(PATIENCE)) == 1
        except RuntimeError as error:
            assert str(error) == "the engine is closed: load it again"  # noqa: PT017, either is right
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.sampled(rows)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("warm", [False, True], ids=["recording", "recorded"])
def test_ctrl_c_at_any_launch_leaves_a_run_as_it_was(chat: Path, after: bool, warm: bool) -> None:
    device = InterruptedDevice()
    with load_on(device, chat) as engine:
        generator = generator_of(engine, chat)
        batch, params = list(PROMPTS[:2]), SamplingParams(temperature=0.9, seed=5, max_new_tokens=4)
        expected = generator.generate(batch, params).output_ids
        for at in range(1000):
            if not warm:
                engine.clear_cuda_graphs()
            run = generator.start(batch, params, keep=True)
            with device.interrupting(at, after=after), suppress(KeyboardInterrupt):
                run.start()
            if run.status == "done":
                break
            assert generator.generate(batch, params).output_ids == expected, at  # somebody else goes on at once
            if run.step_count:  # from anywhere else than its very beginning it can be taken back, and goes on
                run.back(1)
                for _ in run:
                    pass
                assert generator.result(run).output_ids == expected, at
            run.close()
        assert at > 20
        assert not engine._lock._is_owned()  # type: ignore[attr-defined]
        with ThreadPoolExecutor(1) as thread:  # and the lock is free
            assert thread.submit(generator.generate, batch, params).result(PATIENCE).output_ids == expected


class FullDevice(EmulatedDevice):
    """Says that there is room, and has none for more than `most` bytes: another process was faster."""

    most = 0

    def allocate(self, size: int) -> int:
        if size > self.most:
            raise MemoryError("out of memory (CUDA_ERROR_OUT_OF_MEMORY)")
        return super().allocate(size)


@emulated
def test_memory_that_is_refused_is_told_in_the_same_words(chat: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the device refused the [\d.]+ [KM]iB that the weights take: out of"):
        load_on(FullDevice(), chat)
    device = FullDevice()
    device.most = 1 << 20
    model = ModelConfig.from_folder(chat)
    with pytest.raises(
        CapacityError, match=r"max_batch=64 and capacity=128 take .* of it for the .*the device has free"
    ):
        CudaEngine(model, Checkpoint.open(chat, model), rows=64, capacity=128, device=device)


@pytest.mark.gpu
@on_gpu
def test_memory_that_the_real_device_refuses_is_told_and_given_back(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu.cuda.driver import CudaDevice

    model, device = ModelConfig.from_folder(chat), CudaDevice()
    with CudaEngine(model, None, rows=1, capacity=64) as engine:
        per_row = engine.kv_cache.bytes_per_position * 128
        rows = 2 * device.memory_free() // per_row
    reserved = []
    allocate = CudaDevice.allocate
    monkeypatch.setattr(CudaDevice, "memory_free", lambda self: 1 << 50)
    monkeypatch.setattr(
        CudaDevice, "allocate", lambda self, size: reserved.append(allocate(self, size)) or reserved[-1]
    )
    with pytest.raises(CapacityError, match=r"take .*of it for the KV cache"):
        CudaEngine(model, None, rows=rows, capacity=128, device=device)
    assert reserved  # the weights were there before the rest was refused
    assert not device._allocated  # what is free on the device says nothing: others use it, too
    assert not device._pinned


# --- other processes ----------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from phases import Generator, SamplingParams
params = SamplingParams(temperature=0.9, seed=5, max_new_tokens=200)
with Generator.from_pretrained(sys.argv[1], "cuda", max_batch=1, decode=sys.argv[2]) as generator:
    print("ready", flush=True)
    sys.stdin.readline()
    print(generator.generate("the fox", params).output_ids[0])
"""


def together(
    folder: Path, count: int, environment: dict[str, str], decode: str, *, loaded: Callable[[], None] = lambda: None
) -> set[str]:
    """What so many processes generate at the same time: each starts when all have loaded, and `loaded` was called."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), decode], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, **environment},
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        loaded()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return {process.communicate(timeout=PATIENCE)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()


@pytest.mark.gpu
@on_gpu
@DECODE
def test_two_processes_on_one_device_generate_the_same(wide: Path, decode: str) -> None:
    [alone] = together(wide, 1, {}, "per-op")
    assert together(wide, 2, {}, decode) == {alone}


@pytest.mark.gpu
@on_gpu
def test_engines_whose_kernels_each_want_the_whole_device_take_turns(wide: Path) -> None:
    def load(decode: str) -> Generator:
        return Generator.from_pretrained(wide, "cuda", max_batch=4, decode=decode)

    with load("per-op") as small, load("persistent") as one, load("persistent") as two:
        expected = texts_of(small)
        with ThreadPoolExecutor(5) as threads:
            found = [threads.submit(texts_of, generator) for generator in (one, two, small, one, two)]
            assert [future.result(PATIENCE) for future in found] == [expected] * 5


@pytest.fixture
def mps(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A multi-process service of our own; its clients find it by their environment."""
    program = shutil.which("nvidia-cuda-mps-control")
    if program is None:
        pytest.skip("there is no nvidia-cuda-mps-control")
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "log")}
    for folder in environment.values():
        Path(folder).mkdir()
    started = subprocess.run([program, "-d"], env={**os.environ, **environment}, capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"MPS does not start: {started.stdout}{started.stderr}")
    try:
        yield environment
    finally:
        mps_control(environment, "quit")


def mps_control(environment: dict[str, str], command: str) -> str:
    return subprocess.run(
        ["nvidia-cuda-mps-control"], input=f"{command}\n", env={**os.environ, **environment}, text=True,
        capture_output=True, timeout=30,
    ).stdout  # fmt: skip


@pytest.mark.gpu
@on_gpu
@DECODE
def test_two_processes_under_mps_generate_the_same(wide: Path, mps: dict[str, str], decode: str) -> None:
    def is_served() -> None:
        assert mps_control(mps, "get_server_list").strip().isdigit()  # the one server that both are clients of

    [alone] = together(wide, 1, {}, "per-op")
    assert together(wide, 2, mps, decode, loaded=is_served) == {alone}


FORKS = """
import os, signal, sys
from gpu import ForkedError, load_engine
folder = sys.argv[1]
engine = load_engine(folder, "cuda", max_batch=1, capacity=48)
[row] = engine.kv_cache.acquire(1)
engine.write_prompt(row, [1, 2, 3])
engine.prefill([row])
child = os.fork()
if not child:
    signal.alarm(20)
    for act in (lambda: engine.decode([row]), lambda: load_engine(folder, "cuda", max_batch=1, capacity=48)):
        try:
            act()
            print("worked", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    engine.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
engine.sample([row])
print("parent", engine.sampled([row]))
engine.close()
"""


@pytest.mark.gpu
@on_gpu
def test_a_child_of_a_fork_is_refused_and_its_parent_goes_on(chat: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(chat)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done
    used, loaded, parent = done.stdout.splitlines()
    assert used.startswith("ForkedError this engine was loaded before os.fork")
    assert loaded.startswith("ValueError the engine cuda cannot run here: this is a child of os.fork")
    assert parent.startswith("parent")
