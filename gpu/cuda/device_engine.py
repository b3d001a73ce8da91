"""What engines on an NVIDIA device have in common: all of the contract but how tokens go through the model."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.adapter import DEFAULT_RANK
from gpu.buffers import BufferInfo
from gpu.cuda.arena import Arena, Plan
from gpu.cuda.cache_numbers import CacheNumbers
from gpu.cuda.device import Device, Event, Lines
from gpu.cuda.drawing import Drawing, Launches, launches, words_of
from gpu.cuda.forward import draw, mask, penalise, step_of
from gpu.cuda.graphs import GraphCache
from gpu.cuda.shape import Shape, bucket
from gpu.cuda.staging import Staging, Window
from gpu.cuda.watchdog import Watchdog
from gpu.errors import DeviceError, LogitsError
from gpu.penalties import MOST_STOPS, Penalties
from gpu.rows import RowKeeper
from gpu.sampling import check_sampling, no_distribution

Float32Array = npt.NDArray[np.float32]

_OF_ROW = ("drawn", "history")  # what a row's copy has too, besides its logits and cache
_FAULTS = {1: "NaN", 2: "+inf", 3: "nothing but -inf"}


class DeviceEngine(RowKeeper):
    """The part of an engine that launches, waits, draws, and brings values to the device and back.

    Whoever inherits calls `_hold` while it loads, within `_loading`, and adds `prefill`, `_decode` and `_stretch`, what
    there is to tell of it, and `_unload` if it has more to give back than memory of the device.

    Parameters
    ----------
    shape : Shape
        The model, and the rows and positions that there is memory for.
    capacity : int
        Tokens a row can hold.
    numbers : CacheNumbers
        What the cache is made of.
    timeout : float, optional
        Seconds after which a device that does not answer has failed, see `gpu.cuda.watchdog`.
    device : Device, optional
        Where it runs; the first NVIDIA GPU if not given.
    adapters, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most.
    """

    synchronous = False

    def __init__(
        self,
        shape: Shape,
        *,
        capacity: int,
        numbers: CacheNumbers,
        timeout: float | None,
        device: Device | None,
        adapters: int = 0,
        max_lora_rank: int = DEFAULT_RANK,
    ) -> None:
        super().__init__(
            shape.model, rows=shape.rows, capacity=capacity, kv_bytes=numbers.itemsize, adapters=adapters,
            max_lora_rank=max_lora_rank,
        )  # fmt: skip
        self._shape, self._numbers = shape, numbers
        if device is None:
            from gpu.cuda.driver import CudaDevice  # imports CUDA

            device = CudaDevice()
        self._device = device
        self._lock = threading.RLock()  # one call at a time launches; none holds it while it waits
        self._closed = False
        self._watchdog = Watchdog(device, timeout)
        self._graphs = GraphCache(device)
        self._watchdog.owned.append(self._graphs)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Wait in the end until all is on the device; give back what it holds if that fails."""
        try:
            with self._launching():
                yield
            self._watchdog.wait(self._device.record(), "load")
        except BaseException:
            with suppress(DeviceError):
                self._give_back()
            raise

    def _hold(self, state: Plan) -> None:
        """Reserve the memory of this plan, which has that of `Shape.state_of_rows` in it; raises MemoryError."""
        device, rows = self._device, self.kv_cache.rows
        self._arena = Arena(device, state)
        self._staging = Staging(device, self._watchdog)
        self._window = Window(device, self._watchdog, self._launching)
        self._prompts: list[npt.NDArray[np.int32] | None] = [None] * rows
        self._drawing = [
            Drawing.of(self.model.vocab, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0) for _ in range(rows)
        ]
        self._penalised = [False] * rows
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

    def set_penalties(self, row: int, penalties: Penalties) -> None:
        """Say what changes this row's logits before a token is drawn from now on."""
        self._check_penalties(row, penalties)
        biases, words = penalties.biases(self.model.vocab), words_of(penalties)
        with self._launching():
            if biases is not None:
                self._staging.write(self._arena.lines("biases", row), biases)
            if penalties.min_length:
                stops = np.zeros(MOST_STOPS, np.int32)
                stops[: len(penalties.stops)] = penalties.stops
                self._staging.write(self._arena.lines("stops", row), stops)
            self._staging.write(self._arena.lines("penalties", row), words)
            self._penalised[row] = bool(words.any())

    def write_history(self, row: int, first: int, tokens: Sequence[int]) -> None:
        """Say which tokens stand in the row from position `first` on."""
        written = self._checked_history(row, first, tokens)
        if len(written):
            with self._launching():
                address = self._arena.at("history", row) + first * written.itemsize
                self._staging.write(Lines(address, written.nbytes), written)

    def write_token(self, row: int, token: int) -> None:
        """Set the row's next token."""
        self._check_token(row, token)
        with self._launching():
            self._arrived[row] = None
            self._staging.write(self._arena.lines("drawn", row), np.array([token, 0], np.int32))

    # --- what is computed ---------------------------------------------------------------------------------------

    def decode(self, rows: Sequence[int]) -> None:
        """Feed one token a row, see `Engine.decode`."""
        with self._launching("decode", rows):
            self._check_rows(rows)
            for row in rows:
                self.kv_cache.check_room(row, 1)
            if not rows:
                return
            positions = self._stepping(rows)
            self._step = None  # until the step is whole: an interrupt may come between
            self._decode(rows, positions)
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
            stages, penalised = self._launches(rows), any(self._penalised[row] for row in rows)

            def work() -> None:
                if penalised:
                    penalise(self._device, self._shape, self._arena, tokens)
                draw(self._device, self._shape, self._arena, tokens, stages)

            self._graphs.run(("sample", tokens, stages, penalised), work)
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
        faults = {row: fault for row, (_, fault) in zip(rows, drawn, strict=True) if fault}
        if faults:
            raise LogitsError.of({row: self._without_distribution(fault) for row, fault in faults.items()})
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

    def mask_logits(self, row: int, allowed: npt.NDArray[np.uint32]) -> None:
        """Set the row's logits to -inf but for the tokens whose bit is set; no logit comes to the host."""
        self._check_mask(row, allowed)
        with self._launching():
            self._staging.write(self._arena.lines("allowed"), allowed)
            mask(self._device, self._shape, self._arena, row)

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
        """Wait for a stretch of the cache, and give a copy, as float32 numbers."""
        self._check_positions(row, first, last)
        model = self.model
        stretch = np.empty((model.layers, 2, model.kv_heads, last - first, model.head_dim), self._numbers.dtype)
        if stretch.size:
            for lines, part in self._parts(row, first, last, stretch):
                self._window.read(lines, part, f"export_kv of row {row}")
        return self._numbers.widened(stretch)

    def import_kv(self, row: int, first: int, array: npt.NDArray[Any]) -> None:
        """Write a stretch of the cache; what `export_kv` gave keeps its bits, other numbers are rounded."""
        positions = self._check_stretch(row, first, array)
        with self._launching():
            if array.size:
                rounded = np.ascontiguousarray(self._numbers.rounded(array))
                for lines, part in self._parts(row, positions.start, positions.stop, rounded):
                    self._staging.write(lines, part)

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        """Make `target` hold what `source` holds."""
        length = self._copied_length(source, target, length)
        with self._launching():
            if source != target:
                copies = [(self._logits(source, kept), self._logits(target, kept)) for kept in (False, True)]
                copies += ((self._arena.lines(name, source), self._arena.lines(name, target)) for name in _OF_ROW)
                if length:
                    copies += zip(self._stretch(source, 0, length), self._stretch(target, 0, length), strict=True)
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

    def graph_counts(self) -> dict[str, int]:
        """Count the launches of graphs, how many were recorded, and the runs that went without one."""
        graphs = self._graphs
        return {"hits": graphs.hits, "captures": graphs.captures, "fallbacks": graphs.fallbacks}

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
            self._unload()
            self._device.close()

    def _unload(self) -> None:
        """Give back what lies on the device and is no memory of ours; nothing is in the stream any more."""

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

    def _decode(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Launch a step of these rows, which the device knows, and whose tokens come to these positions."""
        raise NotImplementedError

    def _prompts_of(self, rows: Sequence[int]) -> list[npt.NDArray[np.int32]]:
        """Give the prompts that a prefill of these rows feeds, all of which fit."""
        self._check_rows(rows)
        prompts = []
        for row in rows:
            prompt = self._prompts[row]
            if prompt is None:
                raise ValueError(f"row {row} has no prompt to feed: write one first")
            self.kv_cache.check_room(row, len(prompt))
            prompts.append(prompt)
        return prompts

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

    def _stretch(self, row: int, first: int, last: int) -> Sequence[Lines]:
        """Give the memory of a stretch of a row's cache, whose numbers are in the order that `export_kv` gives."""
        raise NotImplementedError

    def _parts(
        self, row: int, first: int, last: int, array: npt.NDArray[Any]
    ) -> Iterator[tuple[Lines, npt.NDArray[Any]]]:
        """Give the memory of a stretch of a row's cache, piece by piece, and what of an array belongs to each."""
        stretch = self._stretch(row, first, last)
        return zip(stretch, array.reshape(len(stretch), -1), strict=True)

    def _without_distribution(self, fault: int) -> LogitsError:
        return no_distribution(_FAULTS[fault & 3], fault >> 2, self.model.vocab)
