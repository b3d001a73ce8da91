"""A child of os.fork is refused at once, also when the parent's threads held every lock as it was made."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from asynchronous_engine import AsynchronousEngine
from emulated_device import CAN_EMULATE, emulated
from tensorrt_stand_in import CAN_STAND_IN, stood_in

from gpu import Engine, ForkedError, HostEngine, engines, load_engine

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_child(act: Callable[[], str]) -> str:
    """What `act` comes to in a forked child; nothing if it hangs, as it is killed then."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(20)
            os.write(writable, act().encode())
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


ONNX = pytest.param("onnx", marks=pytest.mark.skipif("onnx" not in engines(), reason="onnxruntime is not installed"))
CUDA = pytest.param("cuda, emulated", marks=pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64"))

TENSORRT = pytest.param(
    "tensorrt, stand-in", marks=pytest.mark.skipif(not CAN_STAND_IN, reason="no g++ on x86-64, or no TensorRT")
)


@pytest.fixture(params=["numpy", "asynchronous", ONNX, CUDA, TENSORRT])
def forked(request: pytest.FixtureRequest, checkpoint: Path) -> Engine:
    if request.param == "cuda, emulated":
        return emulated(checkpoint, max_batch=6, capacity=48)
    if request.param == "tensorrt, stand-in":
        return stood_in(checkpoint, max_batch=6, capacity=48)
    name = "numpy" if request.param == "asynchronous" else request.param
    loaded = load_engine(checkpoint, name, max_batch=6, capacity=48)
    assert isinstance(loaded, HostEngine)
    return loaded if request.param == name else AsynchronousEngine(loaded)


def refusals(engine: Engine, row: int) -> str:
    said = []
    for act in (
        lambda: engine.prefill([row]),
        lambda: engine.decode([row]),
        lambda: engine.sample([row]),
        lambda: engine.kv_cache.acquire(1),
    ):
        try:
            act()
            said.append("worked")
        except ForkedError as error:
            said.append(str(error))
    engine.kv_cache.release([row])
    return "\n".join(said)


def test_a_child_is_refused_while_threads_of_the_parent_generate(forked: Engine) -> None:
    done, rows = threading.Event(), forked.kv_cache.acquire(5)
    going = threading.Semaphore(0)

    def generate(row: int) -> None:
        while not done.is_set():
            forked.kv_cache.truncate(row, 0)
            forked.write_prompt(row, [1, 2, 3])
            forked.prefill([row])
            for _ in range(20):
                forked.sample([row])
                forked.sampled([row])
                forked.decode([row])
            going.release()

    threads = [threading.Thread(target=generate, args=(row,)) for row in rows[1:]]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            going.acquire()
        for _ in range(10):
            said = in_child(lambda: refusals(forked, rows[0])).splitlines()
            assert len(said) == 4, said
            assert set(said) == {
                "this engine was loaded before os.fork and belongs to the parent process: load it in the child, or "
                'start workers with multiprocessing.get_context("spawn")'
            }
    finally:
        done.set()
        for thread in threads:
            thread.join()
    # The parent lost nothing by it.
    assert forked.kv_cache.free == 1
    forked.write_prompt(rows[0], [1])
    forked.prefill(rows[:1])


def test_a_child_of_a_parent_that_held_every_lock_neither_hangs_nor_harms(checkpoint: Path) -> None:
    engine = load_engine(checkpoint, "numpy", max_batch=2, capacity=16)
    assert isinstance(engine, HostEngine)
    [row] = engine.kv_cache.acquire(1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with engine._lock, engine.kv_cache._lock:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:

        def act() -> str:
            said = refusals(engine, row)
            engine.close()
            return said

        said = in_child(act).splitlines()
    finally:
        leave.set()
        thread.join()
    assert len(said) == 4
    assert "worked" not in said


def test_an_engine_that_a_child_loads_itself_works(checkpoint: Path) -> None:
    """Also while the parent's threads prefill, and so hold the threads of the BLAS down."""

    def act() -> str:
        with load_engine(checkpoint, "numpy", max_batch=1, capacity=16) as engine:  # type: ignore[attr-defined]
            rows = engine.kv_cache.acquire(1)
            engine.write_prompt(rows[0], [1, 2, 3])
            engine.prefill(rows)
            engine.sample(rows)
            return repr(engine.sampled(rows))

    expected, done, going = act(), threading.Event(), threading.Semaphore(0)

    def prefill() -> None:
        with load_engine(checkpoint, "numpy", max_batch=1, capacity=128) as engine:  # type: ignore[attr-defined]
            rows = engine.kv_cache.acquire(1)
            engine.write_prompt(rows[0], [1] * 128)
            while not done.is_set():
                engine.kv_cache.truncate(rows[0], 0)
                engine.prefill(rows)
                going.release()

    threads = [threading.Thread(target=prefill) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            going.acquire()
        assert {in_child(act) for _ in range(8)} == {expected}
    finally:
        done.set()
        for thread in threads:
            thread.join()
