"""The numbers behind a decode step on the machine at hand: what a step, a guard, a token, a byte and a lock cost."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns

from gpu import HostEngine, KeyNumber
from phases.generator import Generator
from phases.request import SamplingParams
from statemachine import End, Guard, JournalWriter, Machine, Phase, Run, Transition

PREFILL = 256  # tokens of the prompt that prefill is measured with, if the capacity allows
PREFILLS = 3
CHAIN = 400  # phases of the machine that a step is measured with
REPEATS = 15
COPIED = 64 * 2**20  # bytes; well above any cache
LOOP = 20_000


def key_numbers(generator: Generator, step_ns: float) -> Iterator[KeyNumber]:
    import numpy as np

    from gpu import measure_read_bandwidth

    step, guarded = _machine_step(guarded=False), _machine_step(guarded=True)
    yield KeyNumber("a machine step", step, "ns", "a phase that does nothing, and on to the next")
    yield KeyNumber("a guard", guarded - step, "ns", "evaluate it and choose by it")
    yield KeyNumber("a journal step", _journal_step(), "ns", "on top of a step that is not recorded")
    yield KeyNumber("a decode step", step_ns, "ns", "Sample, Decode and CheckStop of one row")
    prefill, count = _prefill(generator)
    yield KeyNumber("prefill, a token", prefill, "ns", f"of a prompt of {count} tokens")
    read = generator.engine.bytes_per_token(())
    if isinstance(generator.engine, HostEngine):  # a device reads memory of its own
        bandwidth = measure_read_bandwidth()
        yield KeyNumber("memory read", bandwidth / 1e9, "GB/s", "one thread; what bounds decode")
    yield KeyNumber("weights a step", read / 1e6, "MB", f"read at {read / step_ns:.1f} GB/s, from cache if they fit")
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    copy = _fastest(lambda: np.copyto(target, source)) / (COPIED / 1e6)
    yield KeyNumber("memory copy, a MB", copy, "ns", "avoid it during decode")
    lock = threading.Lock()

    def locked() -> None:
        for _ in range(LOOP):
            with lock:
                pass

    yield KeyNumber("a lock", (_fastest(locked) - _fastest(_empty_loop)) / LOOP, "ns", "nobody else wants it")
    yield KeyNumber("a clock read", (_fastest(_clock_loop) - _fastest(_empty_loop)) / LOOP, "ns", "perf_counter_ns")


def _fastest(work: Callable[[], object]) -> float:
    """The least of several times: what the machine can do when nothing is in the way."""
    times = []
    for _ in range(REPEATS):
        began = perf_counter_ns()
        work()
        times.append(perf_counter_ns() - began)
    return float(min(times))


def _empty_loop() -> None:
    for _ in range(LOOP):
        pass


def _clock_loop() -> None:
    clock = perf_counter_ns
    for _ in range(LOOP):
        clock()


def _chain(*, guarded: bool) -> Machine[None]:
    """Phases that do nothing, one after the other, with a guard on each way or on none."""
    always: Guard[None] = Guard("always", lambda context: True)
    phases: list[Phase[None, None]] = [Phase(f"phase {number}") for number in range(CHAIN)]
    end: End[None] = End("end")
    table: list[Transition[None]] = []
    for phase, following in zip(phases, [*phases[1:], end], strict=True):
        table.append(Transition(phase, following, always if guarded else None))
        if guarded:
            table.append(Transition(phase, end, ~always))
    return Machine("chain", start=phases[0], transitions=table)


def _machine_step(*, guarded: bool) -> float:
    machine = _chain(guarded=guarded)
    runs = iter([Run(machine, None) for _ in range(REPEATS)])
    return _fastest(lambda: next(runs).start()) / CHAIN


class _Count(Phase[list[int], int]):
    """Counts, so that a run of a small machine is as long as it should be."""

    def run(self, context: list[int]) -> int:
        return context[0] + 1

    def apply(self, context: list[int], outcome: int) -> None:
        context[0] = outcome


def _journal_step() -> float:
    """The same run with and without a journal on disk, in turns."""
    count, enough = _Count("count"), Guard[list[int]]("enough", lambda context: context[0] >= LOOP)
    machine = Machine(
        "counting", start=count, transitions=[Transition(count, count, ~enough), Transition(count, End("end"), enough)]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")

        def whole(journal: bool) -> int:
            run = Run(machine, [0], journal=JournalWriter(path) if journal else None)
            began = perf_counter_ns()
            run.start()
            took = perf_counter_ns() - began
            path.unlink(missing_ok=True)
            return took

        pairs = [(whole(True), whole(False)) for _ in range(REPEATS)]
    return (min(recorded for recorded, _ in pairs) - min(unrecorded for _, unrecorded in pairs)) / LOOP


def _prefill(generator: Generator) -> tuple[float, int]:
    """Time a token of prefill, and of how long a prompt."""
    count = min(PREFILL, generator.engine.kv_cache.capacity - 1)
    times = []
    for _ in range(PREFILLS):
        ids = tuple(os.urandom(1)[0] % generator.engine.model.vocab for _ in range(count))
        run = generator.start(list(ids), SamplingParams(max_new_tokens=1))
        run.start()
        times += [step.elapsed_ns for step in run.steps() if step.phase == "prefill"]
    return min(times) / count, count
