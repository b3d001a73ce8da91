"""Measures where the time of a decode step goes, and the numbers behind it, on the machine at hand."""

import cProfile
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from types import CodeType
from typing import Any

from phases.context import Generation
from phases.generator import Generator
from phases.request import RowRequest, SamplingParams
from statemachine import End, Guard, JournalWriter, Machine, Phase, Run, Transition
from statemachine.definition.table import name_of

PASSES = 3  # of each kind, in turns, so that all meet the same weather
PREFILL = 256  # tokens of the prompt that prefill is measured with, if the capacity allows
CHAIN = 400  # phases of the machine that a step is measured with
REPEATS = 15
COPIED = 64 * 2**20  # bytes; well above any cache
LOOP = 20_000

# What the six rows of a decode step are; `phasewalk profile --help` says the same in a few words each.
PARTS = {
    "context update": "apply of Sample, Decode and CheckStop: lengths, tokens and reasons on the host",
    "binding": "the rest of their run: which rows go on, and in which slots; the buffers themselves were bound once",
    "engine": "engine.decode, without the commit",
    "sampling": "engine.sample and the wait for the token, engine.sampled",
    "KV commit": "kv_cache.commit, one a row",
    "machine": "three steps of the machine: the loop, the guards (which look at every row), the record in memory",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A row of the first table: what a part takes in a decode step."""

    name: str
    median_ns: float
    p95_ns: float
    share: float
    what: str


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """A row of the second table."""

    name: str
    value: float
    unit: str
    what: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured.

    Attributes
    ----------
    step_ns, plain_step_ns
        The median of a whole decode step with the stopwatches in it, less what they cost, and without any.
    stopwatch_ns
        What the stopwatches cost in a step; taken off each part by a calibration.
    engine_parts
        The engine's own functions, from a pass under cProfile, as shares of `engine`; empty for an engine that is not
        written in Python.
    """

    steps: int
    prompt_tokens: int
    step_ns: float
    plain_step_ns: float
    stopwatch_ns: float
    parts: tuple[Part, ...]
    engine_parts: tuple[Part, ...]
    key_numbers: tuple[KeyNumber, ...]


def profile(generator: Generator, prompt: str, *, tokens: int = 100) -> Profile:
    """Measure decode steps of real generations: the same request again and again, with and without stopwatches.

    The parts add up to the step: every step's time is the run's own record of it, and what no stopwatch accounts for
    is the machine's.
    """
    params = SamplingParams(max_new_tokens=tokens, stop_token_ids=(), seed=0)
    request = RowRequest(prompt=prompt)
    _plain(generator, request, params)  # the first generation pays for cold caches
    plain: list[int] = []
    watched: list[dict[str, float]] = []
    bias = _calibrate()
    for _ in range(PASSES):
        plain += _plain(generator, request, params)
        watched += _watched(generator, request, params, bias)
    totals = [sum(step.values()) - step["stopwatch"] for step in watched]
    step_ns = statistics.median(totals)
    parts = tuple(_part(name, [step[name] for step in watched], sum(totals), what) for name, what in PARTS.items())
    engine = next(part for part in parts if part.name == "engine")
    run = generator.start(request, params)
    with run:
        run.until(run.machine.phases["sample"])
        prompt_tokens = len(run.context.prompt_ids[0])
    plain_ns = statistics.median(plain)
    return Profile(
        steps=len(watched) // PASSES, prompt_tokens=prompt_tokens, step_ns=step_ns, plain_step_ns=plain_ns,
        stopwatch_ns=statistics.median(step["stopwatch"] for step in watched), parts=parts,
        engine_parts=_engine_parts(generator, request, params, engine),
        key_numbers=tuple(_key_numbers(generator, plain_ns)),
    )  # fmt: skip


def _part(name: str, times: Sequence[float], total: float, what: str) -> Part:
    """A part's share is of the sum over all steps, so that shares add up to 1."""
    return Part(name, statistics.median(times), _p95(times), sum(times) / total, what)


def _p95(times: Sequence[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.95 * len(times)))]


# --- a decode step -----------------------------------------------------------------------------------------------


def _decode_steps(run: Run[Generation]) -> Iterator[int]:
    """The time of each Sample, Decode and CheckStop together; the last token has no Decode and is left out."""
    total, decoded = 0, False
    for step in run.steps():
        if step.phase == "sample":
            total, decoded = 0, False
        total += step.elapsed_ns
        decoded |= step.phase == "decode"
        if step.phase == "check_stop" and decoded:
            yield total


def _plain(generator: Generator, request: RowRequest, params: SamplingParams) -> list[int]:
    run = generator.start(request, params)
    run.start()
    return list(_decode_steps(run))


class Stopwatches:
    """Wraps functions so that the time spent in each is added up, by name and by level.

    A function of one level calls only functions of the next, so a level's own time is its time less the next one's.
    """

    def __init__(self) -> None:
        self.times: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""
        times, calls, clock = self.times, self.calls, perf_counter_ns
        times[name] = times.get(name, 0)
        calls[name] = calls.get(name, 0)

        def timed(*arguments: Any) -> Any:
            began = clock()
            result = function(*arguments)
            times[name] += clock() - began
            calls[name] += 1
            return result

        return timed

    def take(self) -> tuple[dict[str, int], dict[str, int]]:
        """Times and calls since the last call of this method."""
        taken = dict(self.times), dict(self.calls)
        for name in self.times:
            self.times[name] = self.calls[name] = 0
        return taken


@dataclass(frozen=True, slots=True)
class Bias:
    """What one use of a stopwatch adds: to the time that it shows, and beside that to whoever calls."""

    inside_ns: float
    outside_ns: float


def _calibrate() -> Bias:
    """Time a function that does nothing, with a stopwatch and without."""

    def nothing() -> None: ...

    def loop(function: Callable[[], Any]) -> float:
        began = perf_counter_ns()
        for _ in range(LOOP):
            function()
        return (perf_counter_ns() - began) / LOOP

    whole, inside = [], []
    for _ in range(REPEATS):
        watches = Stopwatches()
        watched = watches.wrap("nothing", nothing)
        bare = loop(nothing)
        whole.append(loop(watched) - bare)
        inside.append(watches.times["nothing"] / LOOP - bare)
    shown = max(0.0, statistics.median(inside))
    return Bias(shown, max(0.0, statistics.median(whole) - shown))


class _Watched:
    """A stand-in that has some timed methods, and everything else of the object that it stands for."""

    def __init__(self, target: Any, **methods: Callable[..., Any]) -> None:
        self.__dict__.update(methods)
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _watched_machine(machine: Machine[Generation], watches: Stopwatches) -> Machine[Generation]:
    """The same table, with stopwatches around run and apply of the phases of a decode step."""
    timed: dict[str, Phase[Generation, Any]] = {}
    for name, phase in machine.phases.items():
        timed[name] = phase
        if name in ("sample", "decode", "check_stop"):
            copy: Any = Phase[Generation, Any](name)
            copy.run, copy.apply = watches.wrap("run", phase.run), watches.wrap("apply", phase.apply)
            timed[name] = copy
    table = [replace(way, source=timed[name_of(way.source)], target=timed[name_of(way.target)])
             for way in machine.transitions]  # fmt: skip
    return Machine(machine.name, start=timed[machine.start.name], transitions=table)


@contextmanager
def _watched_cache(engine: Any, watches: Stopwatches) -> Iterator[None]:
    cache = engine.kv_cache
    engine.kv_cache = _Watched(cache, commit=watches.wrap("commit", cache.commit))
    try:
        yield
    finally:
        engine.kv_cache = cache


def _watched(
    generator: Generator, request: RowRequest, params: SamplingParams, bias: Bias
) -> Iterator[dict[str, float]]:
    """Each decode step's time by parts, and what the stopwatches cost in it."""
    watches, engine = Stopwatches(), generator.engine
    machine = _watched_machine(generator.machine, watches)
    with generator.start(request, params) as lent:  # rows, and the request as it is resolved
        context = lent.context
        context.engine = _Watched(
            engine,
            decode=watches.wrap("decode", engine.decode),
            sample=watches.wrap("sample", engine.sample),
            sampled=watches.wrap("sample", engine.sampled),
        )
        run = Run(machine, context)
        seen: list[tuple[dict[str, int], dict[str, int]]] = []

        def after_each_token(run: Run[Generation]) -> bool:
            if run.phase.name == "sample":
                seen.append(watches.take())
            return False

        with _watched_cache(engine, watches):
            run.until(after_each_token)
        # The first one seen is Prefill's; the last token has no Decode, and is not seen.
        for total, (times, calls) in zip(_decode_steps(run), seen[1:], strict=True):
            yield _parts_of(total, times, calls, bias)


def _parts_of(total: int, times: dict[str, int], calls: dict[str, int], bias: Bias) -> dict[str, float]:
    """One step's time by parts: each stopwatch's time less those inside it, and less what the stopwatches cost."""
    own = {name: times[name] - bias.inside_ns * calls[name] for name in times}
    below = {name: times[name] + bias.outside_ns * calls[name] for name in times}  # what it costs whoever calls
    return {
        "context update": own["apply"],
        "binding": own["run"] - below["decode"] - below["sample"],
        "engine": own["decode"] - below["commit"],
        "sampling": own["sample"],
        "KV commit": own["commit"],
        "machine": total - below["run"] - below["apply"],
        "stopwatch": sum(calls.values()) * (bias.inside_ns + bias.outside_ns),
    }


# --- inside the engine -------------------------------------------------------------------------------------------


def _engine_parts(generator: Generator, request: RowRequest, params: SamplingParams, engine: Part) -> tuple[Part, ...]:
    """The functions that decode calls, under cProfile: their shares are those of that pass, as it slows all alike."""
    decode = getattr(type(generator.engine).decode, "__code__", None)
    profiler = cProfile.Profile(builtins=False)
    with generator.start(request, params) as run:
        context = run.context

        def decode_profiled(rows: Sequence[int]) -> None:
            profiler.enable()
            try:
                generator.engine.decode(rows)
            finally:
                profiler.disable()

        context.engine = _Watched(generator.engine, decode=decode_profiled)
        run.start()
    entries = [entry for entry in profiler.getstats() if entry.code is decode]
    if decode is None or not entries or not entries[0].calls:
        return ()
    (entry,) = entries
    times: dict[str, float] = {}
    for call in entry.calls:
        if isinstance(call.code, CodeType) and call.code.co_name != "commit":
            name = _function_name(call.code)
            times[name] = times.get(name, 0) + call.totaltime
    whole = entry.totaltime - sum(call.totaltime for call in entry.calls if _is_commit(call.code))
    times["written out in decode itself"] = whole - sum(times.values())
    return tuple(
        Part(name, time / whole * engine.median_ns, time / whole * engine.p95_ns, time / whole, "under cProfile")
        for name, time in sorted(times.items(), key=lambda item: -item[1])
        if time / whole >= 0.002
    )


def _is_commit(code: Any) -> bool:
    return isinstance(code, CodeType) and code.co_name == "commit"


def _function_name(code: CodeType) -> str:
    qualified = code.co_qualname.removesuffix(".__call__")
    return f"{Path(code.co_filename).stem}.{qualified}"


# --- the key numbers ---------------------------------------------------------------------------------------------


def _key_numbers(generator: Generator, step_ns: float) -> Iterator[KeyNumber]:
    import numpy as np

    from gpu import measure_read_bandwidth

    step, guarded = _machine_step(guarded=False), _machine_step(guarded=True)
    yield KeyNumber("a machine step", step, "ns", "a phase that does nothing, and on to the next")
    yield KeyNumber("a guard", guarded - step, "ns", "evaluate it and choose by it")
    yield KeyNumber("a journal step", _journal_step(), "ns", "on top of a step that is not recorded")
    yield KeyNumber("a decode step", step_ns, "ns", "Sample, Decode and CheckStop of one row")
    prefill, count = _prefill(generator)
    yield KeyNumber("prefill, a token", prefill, "ns", f"of a prompt of {count} tokens")
    bandwidth = measure_read_bandwidth()
    read = generator.engine.bytes_per_token(())
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
    for _ in range(PASSES):
        ids = tuple(os.urandom(1)[0] % generator.engine.model.vocab for _ in range(count))
        run = generator.start(list(ids), SamplingParams(max_new_tokens=1))
        run.start()
        times += [step.elapsed_ns for step in run.steps() if step.phase == "prefill"]
    return min(times) / count, count
