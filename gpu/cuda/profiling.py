"""Measures a decode step and a prefill on the device, by its own clock: parts, kernels, phases, and key numbers."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from gpu.cuda.device import Device, Launcher, Lines, Module, Moment
from gpu.cuda.drawing import Launches
from gpu.cuda.forward import Forward, chunk_of, step_of
from gpu.cuda.paths import PER_OP, PERSISTENT
from gpu.cuda.persistent import Persistent, defines
from gpu.cuda.shape import Shape, bucket, measuring_source, persistent_source, prompt_bucket
from gpu.cuda.staging import Staging
from gpu.cuda.traffic import Traffic, operation, traffic
from gpu.cuda.watchdog import Watchdog
from gpu.profile import DeviceProfile, KeyNumber, Pass, StepPart, Work

STEPS = 8  # one after the other in a measurement; rows must have room for them
_ROUNDS = 5  # of which the median is taken
_TOGETHER = 32  # launches of a kernel in a graph, at least
_CACHES = 32  # times the device's cache is read to learn how fast memory is
_PATIENCE = 15e-6  # seconds that the host may take for a launch and an event while the device is held
_COPIED = 4 << 20  # bytes
_READERS = 512  # of a block; see measuring.cu
_MILLION = 1e6


@dataclass(slots=True)
class _Aside:
    """Stands between who launches and the device."""

    device: Device

    @property
    def processors(self) -> int:
        return self.device.processors

    @property
    def capability(self) -> tuple[int, int]:
        return self.device.capability


@dataclass(slots=True)
class _Watched(_Aside):
    """Launches, and notes the moment after each."""

    moments: list[tuple[str, Moment]] = field(default_factory=list)

    def launch(self, kernel: str, *call: Any, **how: Any) -> None:
        self.device.launch(kernel, *call, **how)
        self.moments.append((kernel, self.device.moment()))


@dataclass(slots=True)
class _Chosen(_Aside):
    """Launches one kernel, and leaves all others out."""

    kernel: str

    def launch(self, kernel: str, *call: Any, **how: Any) -> None:
        if kernel == self.kernel:
            self.device.launch(kernel, *call, **how)


@dataclass(slots=True)
class Profiler:
    """Takes an engine's own launches apart, on rows that hold a prompt and a next token.

    Numbers that it leaves in the rows mean nothing.
    """

    device: Device
    shape: Shape
    forward: Forward
    persistent: Persistent | None  # where it can run
    staging: Staging
    watchdog: Watchdog
    rows: Sequence[int]
    context: int  # tokens that each row holds
    drawing: Launches  # by which they are sampled
    _memory: int = 0  # that is read to learn how fast it is, and to hold the device
    _packs: int = 0
    _reading_ns: float = 0.0

    @property
    def _tokens(self) -> int:
        return bucket(len(self.rows))

    @property
    def _ways(self) -> int:
        return self.shape.ways(self.context + STEPS)

    def profile(self) -> DeviceProfile:
        """Measure everything; the device does nothing else meanwhile."""
        device, shape, rows = self.device, self.shape, len(self.rows)
        device.build([Module(measuring_source(), shape.defines())], compiling=lambda: None)
        self._packs = max(1, min(_CACHES * device.cache, device.memory_free() // 2) // 16)
        self._memory = device.allocate(self._packs * 16 + 16)
        try:
            self._reading_ns = min(self._ns(self._read, times=3) for _ in range(_ROUNDS))
            parts = tuple(self._parts())
            moved = traffic(shape, tokens=rows, attended=rows * (self.context + 1), ended=rows)
            name = f"decode of {rows} row{'s' * (rows > 1)} at {self.context} tokens"
            decode = self._pass(f"{name}, {PER_OP}", self._decode, moved)
            passes = [decode, *self._phases(f"{name}, {PERSISTENT}", moved), self._prefill()]
            numbers = tuple(self._key_numbers(decode))
        finally:
            self._wait(device.moment())
            device.release(self._memory)
        return DeviceProfile(
            device=str(device.environment()["device"]), rows=rows, context=self.context,
            read_bandwidth=self._packs * 16 / self._reading_ns * 1e9, parts=parts, passes=tuple(passes),
            key_numbers=numbers,
        )  # fmt: skip

    # --- parts of a step ----------------------------------------------------------------------------------------

    def _parts(self) -> Iterator[StepPart]:
        update, host = self._both(self._reset, times=STEPS)
        yield StepPart(
            "context update", None, update, host, "rows and positions, when others decode; else a kernel counts on"
        )
        yield StepPart("binding", 0.0, 0.0, 0.0, "all addresses were bound at load, and stand in the graphs")
        yield self._part(f"engine, {PER_OP}", lambda: self._decode(self.forward), "one kernel an operation")
        if (whole := self._whole_step()) is not None:
            yield self._part(f"engine, {PERSISTENT}", lambda: whole.decode(self._tokens), "one kernel for all of it")
        yield self._part("sampling", self._sample, "top_k 50, top_p 0.9")
        yield StepPart("cache update", 0.0, 0.0, 0.0, "the kernel that computes keys and values writes them there")
        address, _ = self.device.pinned(8)
        fetched, host = self._both(
            lambda: self.device.copy(self.forward.arena.lines("drawn", self.rows[0]), Lines(address, 8)), times=STEPS
        )
        self.device.release(address)
        yield StepPart("token to the host", None, fetched, host, "an asynchronous copy into pinned memory")

    def _part(self, name: str, work: Callable[[], None], what: str) -> StepPart:
        plain = statistics.median(self._ns(work, times=STEPS, held=False) for _ in range(_ROUNDS))
        graph, host = self._both(self.device.capture(work).launch, times=STEPS)
        return StepPart(name, graph, plain, host, what)

    # --- kernels ------------------------------------------------------------------------------------------------

    def _pass(self, name: str, run: Callable[[Forward], None], moved: dict[str, Traffic]) -> Pass:
        """Time each kernel of a pass in two ways, and the whole."""
        apart: dict[str, list[list[float]]] = {}  # by kernel: of each round, its launches
        for number in range(_ROUNDS):
            watched = _Watched(self.device)
            self._reset()
            self._hold(400)
            watched.moments.append(("", self.device.moment()))
            run(self._through(watched))
            self._wait(watched.moments[-1][1])
            for (_, before), (kernel, after) in zip(watched.moments, watched.moments[1:], strict=False):
                rounds = apart.setdefault(kernel, [])
                rounds.extend([] for _ in range(number + 1 - len(rounds)))
                rounds[number].append(after.since(before))
        works = []
        for kernel, rounds in apart.items():
            launches, group = len(rounds[0]), operation(kernel)
            copies = -(-_TOGETHER // launches)
            together = self._together(kernel, run, copies)
            size = moved[group].all * launches if group in moved else None
            works.append(Work(kernel, launches, together, statistics.median(sum(found) for found in rounds), size))
        whole, _ = self._both(self.device.capture(lambda: run(self.forward)).launch, times=STEPS)
        return Pass(name, whole, tuple(works))

    def _together(self, kernel: str, run: Callable[[Forward], None], copies: int) -> float:
        """Time the launches of one kernel, in a graph of nothing but them."""
        through = self._through(_Chosen(self.device, kernel))

        def again() -> None:
            for _ in range(copies):
                run(through)

        return self._both(self.device.capture(again).launch)[0] / copies

    def _decode(self, forward: Forward) -> None:
        forward.decode(self._tokens, self._ways)

    def _sample(self) -> None:
        self.forward.sample(self._tokens, self.drawing)

    def _prefill(self) -> Pass:
        """Time what becomes of the first tokens of a prompt, as many as go together."""
        count = min(self.shape.chunk, self.context)
        tokens, arena = prompt_bucket(count), self.forward.arena
        ids = np.resize(np.arange(self.shape.model.vocab, dtype=np.int32), count)
        of_rows, positions = np.full(count, self.rows[0], np.int32), np.arange(count, dtype=np.int32)
        ends = np.array([count - 1], np.int32)
        self.staging.write(arena.lines("chunk"), chunk_of(self.shape, ids, of_rows, positions, ends))

        def run(forward: Forward) -> None:
            forward.prefill(tokens, self.shape.prompt_ways(tokens, count))
            forward.ends(16)

        return self._pass(f"prefill of {count} tokens", run, traffic(self.shape, tokens=count, attended=count, ended=1))

    def _through(self, launcher: Launcher) -> Forward:
        return replace(self.forward, device=launcher)

    # --- phases of the one kernel -------------------------------------------------------------------------------

    def _whole_step(self) -> Persistent | None:
        whole = self.persistent
        return whole if whole is not None and self._tokens in whole.sizes else None

    def _phases(self, name: str, moved: dict[str, Traffic]) -> Iterator[Pass]:
        """Time the phases of the one kernel, by the clock of the device: from when each begins in the first block."""
        if (whole := self._whole_step()) is None:
            return
        clocked = Module(persistent_source(), defines(self.shape, self._tokens, clocked=True))
        self.device.build([clocked], compiling=lambda: None)
        clocks = self.forward.arena.lines("clocks")
        address, seen = self.device.pinned(clocks.width)
        never = np.full(clocks.width // 8, np.iinfo(np.uint64).max, np.uint64)
        found = []
        for _ in range(_ROUNDS):
            self._reset()
            self.staging.write(clocks, never)
            self._hold(1)
            whole.decode(self._tokens, clocked=True)
            self.device.copy(clocks, Lines(address, clocks.width))
            self._wait(self.device.moment())
            found.append(np.diff(seen.view(np.int64)))
        self.device.release(address)
        median = np.median(found, axis=0)
        layers = self.shape.model.layers
        times = {"embed": float(median[0])}
        for index, phase in enumerate(("qkv", "attention", "output", "gate_up", "down")):
            times[phase] = float(median[1 + index : 1 + 5 * layers : 5].sum())
        times["head"] = float(median[-1])
        launched = {"embed": 1, "head": 1}
        works = tuple(
            Work(phase, count := launched.get(phase, layers), spent, None, moved[phase].all * count)
            for phase, spent in times.items()
        )
        graph, _ = self._both(self.device.capture(lambda: whole.decode(self._tokens)).launch, times=STEPS)
        yield Pass(name, graph, works)

    # --- key numbers --------------------------------------------------------------------------------------------

    def _key_numbers(self, decode: Pass) -> Iterator[KeyNumber]:
        device = self.device

        def launch() -> None:
            device.launch("nothing", (1, 1, 1), 32, 0)

        def launch_many() -> None:
            for _ in range(_TOGETHER):
                launch()

        def launch_and_wait() -> None:
            launch()
            self._wait(device.record())

        one, many = device.capture(launch), device.capture(launch_many)
        yield KeyNumber("kernel launch", self._both(launch, times=STEPS)[1], "ns", "of the host, from Python")
        yield KeyNumber(
            "a kernel in a graph", self._both(many.launch)[0] / _TOGETHER, "ns", "of the device: it does nothing"
        )
        yield KeyNumber("graph launch", self._both(one.launch, times=STEPS)[1], "ns", "of the host, from Python")
        yield KeyNumber("synchronise", self._host_ns(launch_and_wait), "ns", "launch a kernel, and know that it ended")
        size = min(_COPIED, self._packs * 16)
        address, _ = device.pinned(size)
        there, back = Lines(self._memory, size), Lines(address, size)
        for name, way in (("host to device, a MB", (back, there)), ("device to host, a MB", (there, back))):
            taken, _ = self._both(partial(device.copy, *way), times=STEPS)
            yield KeyNumber(name, taken / (size / _MILLION), "ns", "pinned memory")
        device.release(address)
        attention = sum(work.time_ns for work in decode.works if operation(work.name) == "attention")
        yield KeyNumber(
            "attention", attention, "ns",
            f"all layers, {len(self.rows) * self.context} tokens; the whole step takes {decode.time_ns / 1e3:.0f} µs",
        )  # fmt: skip
        yield KeyNumber("memory read", self._packs * 16 / self._reading_ns, "GB/s", "what bounds decode, measured now")

    # --- how ----------------------------------------------------------------------------------------------------

    def _both(self, work: Callable[[], object], *, times: int = 1) -> tuple[float, float]:
        """Give the nanoseconds that the device takes while nobody keeps it waiting, and the host."""
        work()  # what is done once is done
        device = statistics.median(self._ns(work, times=times) for _ in range(_ROUNDS))
        return device, self._host_ns(work)

    def _ns(self, work: Callable[[], object], *, times: int = 1, held: bool = True) -> float:
        """Give the nanoseconds from one work to the next: on the device, which is held until all have been launched."""
        self._reset()
        if held:
            self._hold(times)
        begin = self.device.moment()
        for _ in range(times):
            work()
        end = self.device.moment()
        self._wait(end)
        return end.since(begin) / times

    def _host_ns(self, work: Callable[[], object]) -> float:
        found = []
        for _ in range(STEPS):
            self._reset()
            self._wait(self.device.record())
            begin = time.perf_counter_ns()
            work()
            found.append(time.perf_counter_ns() - begin)
        self._wait(self.device.record())
        return statistics.median(found)

    def _reset(self) -> None:
        """Have each row hold what it held."""
        values = step_of(self.shape, self.rows, [self.context] * len(self.rows))
        self.staging.write(self.forward.arena.lines("step"), values)

    def _hold(self, launches: int) -> None:
        """Keep the device busy while the host launches: else it would be seen waiting for the host."""
        for _ in range(1 + int(launches * _PATIENCE * 1e9 / self._reading_ns) if self._reading_ns else 1):
            self._read()

    def _read(self) -> None:
        grid = (self.device.processors * 4, 1, 1)
        self.device.launch("read_all", grid, _READERS, self._memory, self._packs, self._memory + self._packs * 16)

    def _wait(self, event: Any) -> None:
        self.watchdog.wait(event, "profile", self.rows)
