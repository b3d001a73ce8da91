"""The CUDA engine: all of a step in one graph, and nobody waits but who asks for a value."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.buffers import BufferInfo
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import Checkpoint
from gpu.cuda import persistent
from gpu.cuda.arena import Arena, Plan, size_of
from gpu.cuda.bfloat16 import rounded, widened
from gpu.cuda.decoding import Decoding
from gpu.cuda.device import Device, Event, Lines
from gpu.cuda.drawing import Drawing, Launches, launches
from gpu.cuda.forward import Forward, step_of
from gpu.cuda.graphs import GraphCache
from gpu.cuda.loading import load
from gpu.cuda.paths import PER_OP, check_path
from gpu.cuda.prefilling import Prefilling
from gpu.cuda.profiling import STEPS, Profiler
from gpu.cuda.shape import Shape, bucket, kernels_digest
from gpu.cuda.staging import Staging, Window
from gpu.cuda.watchdog import Watchdog
from gpu.cuda.weights import places, write_random
from gpu.errors import CapacityError, CheckpointError, DeviceError, LogitsError
from gpu.memory import check_capacity, check_weights, size, too_large
from gpu.profile import DeviceProfile
from gpu.rows import RowKeeper
from gpu.sampling import check_sampling, no_distribution

Float32Array = npt.NDArray[np.float32]

_FAULTS = {1: "NaN", 2: "+inf", 3: "nothing but -inf"}
_COMPARED_FROM = 64 << 20  # bytes of weights


class CudaEngine(RowKeeper):
    """Runs a model of the Llama family on an NVIDIA GPU; see `gpu.engine.Engine` for what the verbs mean.

    Weights, activations between kernels and the cache are bfloat16; sums, the residual stream, norms and logits are
    float32. With `quantize` the weights are 8 bits wide, and nothing else changes. Prefill and decode run the same
    kernels, and every sum has one order: a token's bits are the same in a prompt, in a piece of one and alone, and in
    any company.

    Parameters
    ----------
    model : ModelConfig
        The shape of the model.
    checkpoint : Checkpoint, optional
        Its weights; read here. Without one they are random, which is enough to measure.
    rows : int
        Sequences that fit at once.
    capacity : int
        Tokens a row can hold.
    threads : int, optional
        Has no meaning here.
    decode : {"per-op", "persistent"}, optional
        How it decodes, see `gpu.cuda.paths`; its own choice if not given.
    quantize : {"int8", "fp8"}, optional
        What matrices are rounded to at load, each row of them with a scale; bfloat16 if not given.
    timeout : float, optional
        Seconds after which a device that does not answer has failed, see `gpu.cuda.watchdog`.
    device : Device, optional
        Where it runs; the first NVIDIA GPU if not given.
    """

    name = "cuda"
    synchronous = False

    def __init__(
        self,
        model: ModelConfig,
        checkpoint: Checkpoint | None,
        *,
        rows: int,
        capacity: int,
        threads: int | None = None,
        decode: str | None = None,
        quantize: str | None = None,
        timeout: float | None = None,
        device: Device | None = None,
    ) -> None:
        super().__init__(model, rows=rows, capacity=capacity, kv_bytes=2)
        self._shape = shape = Shape(model, rows, capacity, quantize)
        shape.check()
        if device is None:
            from gpu.cuda.driver import CudaDevice  # imports CUDA

            device = CudaDevice()
        self._device = device
        self._lock = threading.RLock()  # one call at a time launches; none holds it while it waits
        self._closed = False
        self._no_whole_step = persistent.missing(shape, device)
        check_path(decode, self._no_whole_step)
        self._watchdog = Watchdog(device, timeout)
        self._graphs = GraphCache(device)
        self._watchdog.owned.append(self._graphs)
        try:
            with self._launching():
                self._bind(checkpoint, decode)
            self._watchdog.wait(device.record(), "load")
        except BaseException:
            with suppress(DeviceError):
                self._give_back()
            raise

    def _bind(self, checkpoint: Checkpoint | None, decode: str | None) -> None:
        device, shape, rows = self._device, self._shape, self.kv_cache.rows
        weights, free = size_of(shape.weights()), device.memory_free()

        def state(rows: int, capacity: int) -> Plan:
            planned = replace(shape, rows=rows, capacity=capacity)
            return {**planned.state(), **persistent.state(planned)}

        def needs(rows: int, capacity: int) -> dict[str, int]:
            plan = state(rows, capacity)
            cache = size_of({"kv_cache": plan["kv_cache"]})
            return {"KV cache": cache, "buffers": size_of(plan) - cache}

        quantised = None if shape.quantize else size_of(replace(shape, quantize="int8").weights())
        check_weights(weights, device=free, quantised=quantised)
        check_capacity(rows, self.kv_cache.capacity, needs, weights=weights, device=free)
        try:  # another process may have been faster
            self._weights = Arena(device, shape.weights())
        except MemoryError as error:
            raise CheckpointError(f"the device refused the {size(weights)} that the weights take: {error}") from error
        try:
            self._arena = Arena(device, state(rows, self.kv_cache.capacity))
        except MemoryError as error:
            raise too_large(rows, self.kv_cache.capacity, needs, weights=weights, device=free) from error
        self._staging = Staging(device, self._watchdog)
        self._window = Window(device, self._watchdog, self._launching)
        announce = checkpoint.announce if checkpoint is not None else lambda what: None
        whole_steps = decode != PER_OP and self._no_whole_step is None
        device.build(
            [*(persistent.modules(shape) if whole_steps else ()), *shape.modules(device.capability)],
            compiling=lambda: announce("compiling kernels (once for this model)"),
        )
        self._forward = Forward(device, shape, self._weights, self._arena)
        self._prefilling = Prefilling(self._forward, shape, self._arena, self._staging, self._graphs)
        self._persistent = None
        if whole_steps:
            self._persistent = persistent.bind(device, shape, self._weights, self._arena, self._staging)
            self._watchdog.last_words = self._persistent.last_words
        why = "asked for" if decode else self._no_whole_step or "the engine's choice"
        self._decoding = Decoding(self._forward, self._persistent, self._graphs, why)

        table = self.model.rope.table(self.model.head_dim, self.kv_cache.capacity)
        half = self.model.head_dim // 2
        self._staging.write(self._arena.lines("rope"), np.concatenate([table[0, :, :half], table[1, :, half:]], axis=1))
        self._weight_bytes = shape.bytes_per_step()
        if checkpoint is None:
            write_random(device, shape, self._weights, self._staging)
        else:
            load(
                device,
                checkpoint,
                self._weights,
                places(self.model),
                wait=lambda event: self._watchdog.wait(event, "load"),
                quantize=shape.quantize is not None,
            )

        if decode is None:
            self._decoding.measure(device, shape, self._arena, self._staging, self._watchdog, self._window)
        if weights > _COMPARED_FROM:
            self._prefilling.compare(self._window)

        self._prompts: list[npt.NDArray[np.int32] | None] = [None] * rows
        self._drawing = [
            Drawing.of(self.model.vocab, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0) for _ in range(rows)
        ]
        self._drawn_address, drawn = device.pinned(rows * 8)
        self._drawn = drawn.view(np.int32).reshape(rows, 2)  # as it was when a row's event had come
        self._arrived: list[Event | None] = [None] * rows  # None: the device's token is not on its way to the host
        self._step: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # the rows and positions that the device has

    # --- what goes in -------------------------------------------------------------------------------------------

    def write_prompt(self, row: int, ids: Sequence[int]) -> None:
        """Set the tokens that the next prefill feeds."""
        prompt = self._checked_prompt(row, ids)
        self._prompts[row] = prompt.copy()

    def set_sampling(self, row: int, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
        """Say how this row is sampled from now on."""
        self._check_row(row)
        check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        drawing = Drawing.of(
            self.model.vocab, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
        )
        with self._launching():
            self._staging.write(self._arena.lines("sampling", row), drawing.words)
            self._drawing[row] = drawing

    def write_token(self, row: int, token: int) -> None:
        """Set the row's next token."""
        self._check_token(row, token)
        with self._launching():
            self._arrived[row] = None
            self._staging.write(self._arena.lines("drawn", row), np.array([token, 0], np.int32))

    # --- what is computed ---------------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, all rows together, chunk by chunk, see `Engine.prefill`."""
        with self._launching("prefill", rows):
            self._check_rows(rows)
            prompts = []
            for row in rows:
                prompt = self._prompts[row]
                if prompt is None:
                    raise ValueError(f"row {row} has no prompt to feed: write one first")
                self.kv_cache.check_room(row, len(prompt))
                prompts.append(prompt)
            if not rows:
                return
            counts = [len(prompt) for prompt in prompts]
            starts = [self.kv_cache.length(row) for row in rows]
            ids = np.concatenate(prompts)
            of_rows = np.repeat(np.asarray(rows, np.int32), counts)
            positions = np.concatenate(
                [np.arange(start, start + n, dtype=np.int32) for start, n in zip(starts, counts, strict=True)]
            )
            ends = np.cumsum(counts) - 1
            chunk = self._shape.chunk
            for first in range(0, len(ids), chunk):
                part = slice(first, first + chunk)
                inside = ends[(ends >= first) & (ends < first + chunk)]
                self._prefilling.feed(ids[part], of_rows[part], positions[part], (inside - first).astype(np.int32))
            for row, count in zip(rows, counts, strict=True):
                self.kv_cache.commit(row, count)

    def decode(self, rows: Sequence[int]) -> None:
        """Feed one token a row, see `Engine.decode`."""
        with self._launching("decode", rows):
            self._check_rows(rows)
            for row in rows:
                self.kv_cache.check_room(row, 1)
            if not rows:
                return
            positions = self._stepping(rows)
            tokens = bucket(len(rows))
            ways = self._shape.ways(max(positions) + 1)
            self._step = None  # until the step is whole: an interrupt may come between
            self._watchdog.path = self._decoding.path(tokens, ways)
            self._decoding.launch(tokens, ways)
            self._step = tuple(rows), tuple(position + 1 for position in positions)
            for row in rows:
                self.kv_cache.commit(row, 1)

    def sample(self, rows: Sequence[int]) -> None:
        """Draw the next token of each row, see `gpu.sampling`; it is on its way to the host at once."""
        with self._launching("sample", rows):
            self._check_rows(rows)
            if not rows:
                return
            self._stepping(rows)
            tokens = bucket(len(rows))
            for row in rows:
                self._arrived[row] = None
            stages = self._launches(rows)
            self._graphs.run(("sample", tokens, stages), lambda: self._forward.sample(tokens, stages))
            self._fetch(rows)

    def sampled(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Wait until the tokens have reached the host."""
        if not rows:
            return ()
        self._home.check()
        with self._lock:
            self._check_open()
            if late := [row for row in rows if self._arrived[row] is None]:
                with self._launching():
                    self._fetch(late)
            events = {event for row in rows if (event := self._arrived[row]) is not None}
        for event in events:
            self._watchdog.wait(event, "sampled", rows)
        with self._lock:
            self._check_open()  # it may have been closed meanwhile
            drawn = [self._drawn[row].tolist() for row in rows]
        for _, fault in drawn:
            if fault:
                raise self._without_distribution(fault)
        return tuple(token for token, _ in drawn)

    # --- logits -------------------------------------------------------------------------------------------------

    def read_logits(self, row: int, *, kept: bool = False) -> Float32Array:
        """Wait for the row's logits, or its kept ones, and give a copy."""
        self._check_row(row)
        logits = np.empty(self.model.vocab, np.float32)
        self._window.read(self._logits(row, kept), logits, f"read_logits of row {row}")
        return logits

    def write_logits(self, row: int, logits: Float32Array, *, kept: bool = False) -> None:
        """Replace the row's logits, or its kept ones."""
        self._check_logits(row, logits)
        with self._launching():
            self._staging.write(self._logits(row, kept), logits)

    def keep_logits(self, row: int) -> None:
        """Put a copy of the row's logits aside."""
        self._check_row(row)
        with self._launching():
            self._device.copy(self._logits(row), self._logits(row, kept=True))

    def restore_logits(self, row: int) -> None:
        """Make the kept logits the row's logits again."""
        self._check_row(row)
        with self._launching():
            self._device.copy(self._logits(row, kept=True), self._logits(row))

    # --- the cache ----------------------------------------------------------------------------------------------

    def export_kv(self, row: int, first: int, last: int) -> npt.NDArray[Any]:
        """Wait for a stretch of the cache, and give a copy: bfloat16 numbers, as float32."""
        self._check_positions(row, first, last)
        model = self.model
        stretch = np.empty((model.layers, 2, model.kv_heads, last - first, model.head_dim), np.uint16)
        if stretch.size:
            self._window.read(self._stretch(row, first, last), stretch, f"export_kv of row {row}")
        return widened(stretch)

    def import_kv(self, row: int, first: int, array: npt.NDArray[Any]) -> None:
        """Write a stretch of the cache; what `export_kv` gave keeps its bits, other numbers are rounded."""
        positions = self._check_stretch(row, first, array)
        with self._launching():
            if array.size:
                self._staging.write(self._stretch(row, positions.start, positions.stop), rounded(array))

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        """Make `target` hold what `source` holds."""
        length = self._copied_length(source, target, length)
        with self._launching():
            if source != target:
                copies = [(self._logits(source, kept), self._logits(target, kept)) for kept in (False, True)]
                copies.append((self._arena.lines("drawn", source), self._arena.lines("drawn", target)))
                if length:
                    copies.append((self._stretch(source, 0, length), self._stretch(target, 0, length)))
                self._arrived[target] = None
                for pair in copies:
                    self._device.copy(*pair)
            self._set_length(target, length)

    # --- what there is to see -----------------------------------------------------------------------------------

    def memory(self) -> tuple[BufferInfo, ...]:
        """Tell where everything lies on the device, but the weights."""
        return self._arena.infos()

    def peek(self, row: int) -> dict[str, int | float]:
        """Wait, and give what there is one number of for this row."""
        self._check_row(row)
        drawn = np.empty(2, np.int32)
        self._window.read(self._arena.lines("drawn", row), drawn, f"peek of row {row}")
        return {"next_token": int(drawn[0]), **self._drawing[row].parameters}

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads."""
        used = sum(self.kv_cache.length(row) for row in rows)
        embedding = self._shape.embedding_bytes
        return self._weight_bytes + len(rows) * embedding + used * self.kv_cache.bytes_per_position

    def environment(self) -> dict[str, Any]:
        """Tell what can change a bit: the device, the compiler and the kernels."""
        return {
            "engine": self.name,
            "dtype": "bfloat16",
            "quantize": self._shape.quantize,
            "rows": self.kv_cache.rows,
            "capacity": self.kv_cache.capacity,
            "threads": 1,
            "kernels": kernels_digest(),
            "numpy": np.__version__,
            **self._device.environment(),
        }

    def graph_counts(self) -> dict[str, int]:
        """Count the launches of graphs, how many were recorded, and the runs that went without one."""
        graphs = self._graphs
        return {"hits": graphs.hits, "captures": graphs.captures, "fallbacks": graphs.fallbacks}

    def facts(self) -> dict[str, str | int]:
        """Tell which way it decodes and why, and what its graphs were good for."""
        counts = {f"graph {name}": count for name, count in self.graph_counts().items()}
        facts: dict[str, str | int] = {"decode path": f"{self._watchdog.path} ({self._decoding.why})"}
        if self._shape.quantize:
            facts["weights"] = self._shape.quantize
        return {**facts, **self._prefilling.faults, **counts}

    def profile(self, *, rows: int = 1, context: int = 128) -> DeviceProfile:
        """Measure on the device where the time of a step goes, see `Engine.profile`."""
        if not 0 < context <= self.kv_cache.capacity - STEPS:
            raise CapacityError(
                f"steps at {context} tokens were to be measured: expected 1 to {self.kv_cache.capacity - STEPS}, for "
                f"{STEPS} more are decoded; load the model with a larger capacity"
            )
        used = self.kv_cache.acquire(rows)
        try:
            for row in used:
                self.write_prompt(row, [token % self.model.vocab for token in range(row, row + context)])
                self.set_sampling(row, temperature=1.0, top_k=50, top_p=0.9, min_p=0.0, seed=row)
            self.prefill(used)
            self.sample(used)
            with self._launching("profile", used):
                self._step = None  # what it writes there is not noted
                profiler = Profiler(
                    self._device, self._shape, self._forward, self._persistent, self._staging, self._watchdog, used,
                    context, self._launches(used),
                )  # fmt: skip
                return profiler.profile()
        finally:
            self.kv_cache.release(used)

    def clear_cuda_graphs(self) -> None:
        """Forget all graphs; each is recorded again when it is next used."""
        with self._launching():
            self._graphs.clear()

    def close(self) -> None:
        """Give all memory of the device back; every call that needs it is refused from now on."""
        if self._home.left:  # nothing of it works in a child, and the memory is the parent's
            return
        with self._window.turn, self._lock:  # nobody reads what is given back
            if self._closed:
                return
            self._closed = True
            self._give_back()

    # --- how ----------------------------------------------------------------------------------------------------

    def _give_back(self) -> None:
        """Free what the device holds; nothing of one that has failed can be."""
        if self._watchdog.failure is None:
            self._device.enter()
            self._watchdog.wait(self._device.record(), "close")
            self._graphs.clear()
            self._device.close()

    @contextmanager
    def _launching(self, work: str = "", rows: Sequence[int] = ()) -> Iterator[None]:
        """Let one thread at a time launch, in the process of the engine, as long as that is open and works."""
        self._home.check()
        with self._lock:
            self._check_open()
            if work:
                self._watchdog.launches(work, rows)
            try:
                self._device.enter()
                yield
            except Exception as error:
                self._watchdog.examine(error)
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed: load it again")
        self._watchdog.check()

    def _stepping(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Have the device know the rows and positions of a step; it counts on by itself as long as they stay."""
        step = tuple(rows), tuple(self.kv_cache.length(row) for row in rows)
        if step != self._step:
            self._step = None
            self._staging.write(self._arena.lines("step"), step_of(self._shape, *step))
            self._step = step
        return step[1]

    def _launches(self, rows: Sequence[int]) -> Launches:
        """Give the launches that draw for these rows: what none of them asks for is left out."""
        return launches((self._drawing[row] for row in rows), self._shape.shares)

    def _fetch(self, rows: Sequence[int]) -> None:
        """Send the drawn tokens to the host; the event says when they are there."""
        drawn = self._arena.lines("drawn")
        self._device.copy(drawn, Lines(self._drawn_address, drawn.width))
        event = self._device.record()
        for row in rows:
            self._arrived[row] = event

    def _logits(self, row: int, kept: bool = False) -> Lines:
        return self._arena.lines("kept_logits" if kept else "logits", row)

    def _stretch(self, row: int, first: int, last: int) -> Lines:
        """Give the memory of a stretch of a row's cache: a line for each layer's keys and values of each head."""
        model, numbers = self.model, self.model.head_dim * 2
        return Lines(
            self._arena.at("kv_cache", row) + first * numbers,
            (last - first) * numbers,
            model.layers * 2 * model.kv_heads,
            self.kv_cache.capacity * numbers,
        )

    def _without_distribution(self, fault: int) -> LogitsError:
        return no_distribution(_FAULTS[fault & 3], fault >> 2, self.model.vocab)
