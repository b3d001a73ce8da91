"""The TensorRT engine: a plan, run on memory that was bound once, and all of a decode step in one graph."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpu.adapter import DEFAULT_RANK, Adapter
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.cuda.arena import Array, Plan, size_of
from gpu.cuda.cache_numbers import CACHE_NUMBERS
from gpu.cuda.device import Device, Lines
from gpu.cuda.device_engine import DeviceEngine
from gpu.cuda.forward import step_of
from gpu.cuda.shape import Shape, bucket, drawing_digest
from gpu.errors import OptionError, PlanError
from gpu.memory import check_capacity, check_weights, too_large
from gpu.onnx.data import places
from gpu.onnx.graph import cache_names
from gpu.onnx.identity import DTYPES
from gpu.onnx.products import EMBEDDINGS
from gpu.printable import printable
from gpu.tensorrt.adapters import DeviceAdapters, adapter_memory
from gpu.tensorrt.available import device_class, not_for
from gpu.tensorrt.cached import SPARE, cached_plan, positions_of
from gpu.tensorrt.execution import DECODE, PREFILL, Context, LoadedPlan
from gpu.tensorrt.library import ALIGNMENT, FLAVOUR, VERSION
from gpu.tensorrt.plan import Here, PlanIdentity, ReadPlan, read_engine, read_identity

DTYPE = "bfloat16"  # of a plan that the engine makes itself, unless it is told another
WHOLE, FITTED = "whole", "fitted"  # ways to decode
_COPIERS = 8  # blocks that copy a row of logits
_FEWEST = 256  # positions that a fitted step looks at


class Step(NamedTuple):
    """What a graph of a decode step is recorded for."""

    rows: int  # of the engine, the first ones
    positions: int  # of each that are looked at
    adapter: str | None  # whose matrices are bound, or zeros of rank 1 where there is none

    def __str__(self) -> str:
        return (
            f"{self.rows} x {self.positions:,}{'' if self.adapter is None else f' with {printable(self.adapter, 40)}'}"
        )


class TensorRTEngine(DeviceEngine):
    """Runs a model of the Llama family as TensorRT compiled it; see `gpu.engine.Engine` for what the verbs mean.

    A prompt goes through the plan's first profile, a row alone and chunk by chunk. A decode step goes through its
    second one, as a graph that is recorded when it is first used. As a rule a step is whole: it has all rows of the
    engine and looks at the whole capacity. So nothing of it ever changes, one graph serves all steps, and a row's bits
    do not depend on who shares its batch. With `decode="fitted"` it has as many rows as there are up to the last one
    that decodes, and looks at as many positions as the longest of these has, both rounded up to a power of two, the
    positions to 256 at least. That reads less, and a row's bits may depend on the rows that decode with it, and on how
    long they are. A row that rests puts a token aside, at the last position of the plan, which no token has and nobody
    looks at.

    With room for adapters, its plan takes one. Rows that have different ones take their steps one after the other, each
    in a graph of its adapter's; rows that have none get zeros of rank 1. Such a plan is another one than that of an
    engine without room, and TensorRT may round otherwise in it.

    Each kind of step has a context of its own, which is bound once: what was recorded from a context must not be
    launched after the context was told anything else.

    What lies behind a row's length is looked at, and counts for nothing as long as it is finite. So it is made zero
    before a row decodes that has been made shorter, or was written to there.

    Parameters
    ----------
    model : ModelConfig
        The shape of the model.
    checkpoint : Checkpoint
        What the plan must be of; compiled here if it was not before, and no plan is given.
    rows : int
        Sequences that fit at once.
    capacity : int
        Tokens a row can hold: at most the positions of the plan, of which one is spare.
    threads : int, optional
        Has no meaning here.
    plan : str or Path, optional
        A file that `phasewalk build` made of this checkpoint, instead of the one in the user's cache folder.
    dtype : {"bfloat16", "float16", "float32"}, optional
        Of weights, activations and cache; bfloat16, or the plan's, if not given.
    decode : {"whole", "fitted"}, optional
        What a decode step computes: whole if not given.
    timeout : float, optional
        Seconds after which a device that does not answer has failed, see `gpu.cuda.watchdog`.
    adapters, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most.
    device : Device, optional
        Where it runs; the first NVIDIA GPU if not given.
    runtime : callable, optional
        Makes a runtime of a logger; `tensorrt.Runtime` if not given.

    Raises
    ------
    PlanError
        If the plan cannot be made or kept, is damaged, or is one of another model or for another machine.
    ExportError
        If the graph that it is made of cannot be made.
    OptionError
        If there is no such dtype or way to decode, or the plan is made for another dtype, or for fewer rows or
        positions, or takes no adapters of that rank.
    DeviceError
        If TensorRT refuses to run it.
    """

    name = "tensorrt"

    def __init__(
        self,
        model: ModelConfig,
        checkpoint: Checkpoint,
        *,
        rows: int,
        capacity: int,
        threads: int | None = None,
        plan: str | Path | None = None,
        dtype: str | None = None,
        decode: str | None = None,
        timeout: float | None = None,
        adapters: int = 0,
        max_lora_rank: int | None = None,
        device: Device | None = None,
        runtime: Callable[[Any], Any] | None = None,
    ) -> None:
        if dtype not in (None, *DTYPES):
            raise OptionError(f"dtype is {printable(dtype, 40)}: expected {', '.join(DTYPES)}")
        if decode not in (None, WHOLE, FITTED):
            raise OptionError(
                f"the engine tensorrt has no decode {printable(decode, 40)}: expected {WHOLE} or {FITTED}"
            )
        rank = min(max_lora_rank or DEFAULT_RANK, model.hidden)
        if plan is None:
            dtype = dtype or DTYPE
            positions = positions_of(capacity)
        else:
            identity = read_identity(Path(plan))
            capacity = _fitting(identity, rows, capacity, dtype)
            dtype, positions = identity.dtype, identity.capacity
            if adapters:
                rank = _fitting_rank(identity, rank if max_lora_rank else None)
        shape = Shape(model, rows, positions)
        super().__init__(
            shape, capacity=capacity, numbers=CACHE_NUMBERS[dtype], timeout=timeout, device=device, adapters=adapters,
            max_lora_rank=rank,
        )  # fmt: skip
        self._of_adapters = DeviceAdapters(model, dtype, count=adapters)
        self._watchdog.path = FLAVOUR
        self._plan: LoadedPlan | None = None
        self._contexts: list[Context] = []
        self._dtype, self._plan_file, self._decodes = dtype, plan, decode or WHOLE
        self._of_steps: dict[Step, Context] = {}
        with self._loading():
            self._bind(checkpoint, runtime)

    def _bind(self, checkpoint: Checkpoint, runtime: Callable[[Any], Any] | None) -> None:
        device, model, dtype, rows = self._device, self.model, self._dtype, self.kv_cache.rows
        free, positions = device.memory_free(), self._shape.capacity
        sizes = {place.name: place.size for place in places(model, dtype)}
        weights = sum(sizes.values())
        self._weight_bytes = weights - (0 if model.tied_embeddings else sizes[EMBEDDINGS])

        room = adapter_memory(model, dtype, count=self.adapter_slots, rank=self.max_lora_rank)

        def needs(rows: int, capacity: int) -> dict[str, int]:
            state = _state(Shape(model, rows, positions_of(capacity)), dtype, chunk=capacity)
            cache = size_of({"kv_cache": state["kv_cache"]})
            return {"KV cache": cache, "buffers": size_of(state) - cache, "adapters": size_of(room)}

        check_weights(weights, device=free)
        check_capacity(rows, self.kv_cache.capacity, needs, weights=weights, device=free)
        _check_aligned(model, dtype, positions)
        read = self._read_plan(checkpoint)
        self._digest, self.prefill_chunk = read.sha256[:16], read.identity.chunk

        checkpoint.announce("starting TensorRT")
        caches = [name for layer in range(model.layers) for name in cache_names(layer)]
        self._plan = loaded = LoadedPlan(read.engine, dtype, caches, runtime=runtime)
        self._watchdog.owned += [self._contexts, loaded]
        del read
        state = _state(self._shape, dtype, chunk=self.prefill_chunk)
        more = {"scratch": loaded.scratch, "no_adapter": loaded.adapter_size}
        try:
            self._hold({**state, **room, **{name: Array((size,), "uint8") for name, size in more.items()}})
        except MemoryError as error:
            raise too_large(rows, self.kv_cache.capacity, needs, weights=weights, device=free) from error
        device.build(
            self._shape.modules_of_rows(),
            compiling=lambda: checkpoint.announce("compiling kernels (once for this model)"),
        )
        self._written = [0] * rows  # [rows], positions from this one on hold zeros
        self._staging.write(self._arena.lines("positions"), np.arange(positions, dtype=np.int64))
        self._staging.write(self._arena.lines("batch_lengths"), np.ones(rows, np.int32))
        self._of_prompts = self._bound(loaded, PREFILL, "prompt", 1, self.kv_cache.capacity, None)
        self._stepping(())  # all rows rest
        self._context_of(self._whole(None))
        self._watchdog.wait(device.record(), "load")

    def _read_plan(self, checkpoint: Checkpoint) -> ReadPlan:
        """Read the plan that was given, or one that is made for this engine."""
        here = Here(FLAVOUR, VERSION, device_class(self._device.capability))
        if (reason := not_for(here.flavour, here.device)) is not None:
            raise PlanError(reason)
        if self._plan_file is not None:
            return read_engine(Path(self._plan_file), here, model_fingerprint(checkpoint.folder))
        rows, capacity = self.kv_cache.rows, self.kv_cache.capacity
        return cached_plan(
            checkpoint, self.model, here, dtype=self._dtype, rows=rows, capacity=capacity,
            lora_rank=self.max_lora_rank if self.adapter_slots else None,
        )  # fmt: skip

    # --- what is computed ---------------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, row by row and chunk by chunk, see `Engine.prefill`."""
        with self._launching("prefill", rows):
            prompts = self._prompts_of(rows)
            for row, prompt in zip(rows, prompts, strict=True):
                start = self.kv_cache.length(row)
                self._written[row] = max(self._written[row], start + len(prompt))
                self._bind_row(self._of_prompts, row)
                self._bind_adapter(self._of_prompts, self._adapter_index(row))
                for first in range(0, len(prompt), self.prefill_chunk):
                    self._feed(start + first, prompt[first : first + self.prefill_chunk])
                self._device.copy(self._arena.lines("prompt_logits"), self._arena.lines("logits", row))
            for row, prompt in zip(rows, prompts, strict=True):
                self.kv_cache.commit(row, len(prompt))

    # --- the cache ----------------------------------------------------------------------------------------------

    def import_kv(self, row: int, first: int, array: npt.NDArray[Any]) -> None:
        """Write a stretch of the cache; what `export_kv` gave keeps its bits, other numbers are rounded."""
        positions = self._check_stretch(row, first, array)
        with self._launching():
            self._written[row] = max(self._written[row], positions.stop)
            super().import_kv(row, first, array)

    def copy_row(self, source: int, target: int, *, length: int | None = None) -> None:
        """Make `target` hold what `source` holds."""
        copied = self._copied_length(source, target, length)
        with self._launching():
            self._written[target] = max(self._written[target], copied)
            super().copy_row(source, target, length=length)

    # --- what there is to see -----------------------------------------------------------------------------------

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows needs; it reads those of positions without a token too."""
        used = sum(self.kv_cache.length(row) for row in rows)
        adapters = self._adapter_bytes(rows) * self._numbers.itemsize // 4
        return self._weight_bytes + adapters + used * self.kv_cache.bytes_per_position

    def environment(self) -> dict[str, Any]:
        """Tell what can change a bit: the plan, what runs it, and the kernels that draw."""
        return {
            "engine": self.name,
            "dtype": self._dtype,
            **({} if self._dtype == "float32" else {"activations": self._dtype}),
            "rows": self.kv_cache.rows,
            "capacity": self.kv_cache.capacity,
            "positions": self._shape.capacity,
            "decode": self._decodes,
            "threads": 1,
            "tensorrt": f"{FLAVOUR} {VERSION}",
            "plan": self._digest,
            "kernels": drawing_digest(),
            "numpy": np.__version__,
            **self._device.environment(),
        }

    def facts(self) -> dict[str, str | int]:
        """Tell of which plan it is, and what its graphs were good for."""
        plan = "of the cache folder" if self._plan_file is None else printable(self._plan_file)
        positions = f"the plan has {self._shape.capacity} positions, of which {SPARE} is spare"
        return {
            "plan": f"{plan}, {FLAVOUR} {VERSION}",
            "tokens of a row": f"{self.kv_cache.capacity}; {positions}",
            "decode": f"{self._decodes}; rows x positions: {', '.join(sorted(map(str, self._of_steps)))}",
            **{f"graph {name}": count for name, count in self.graph_counts().items()},
        }

    # --- how ----------------------------------------------------------------------------------------------------

    def _unload(self) -> None:
        for context in self._contexts:
            context.close()
        if self._plan is not None:
            self._plan.close()

    def _place_adapter(self, index: int, adapter: Adapter) -> None:
        with self._launching():
            self._of_adapters.load(index, adapter, self._arena, self._staging)

    def _bound(
        self, plan: LoadedPlan, profile: int, of: str, rows: int, positions: int, adapter: int | None
    ) -> Context:
        """Make a context for so many rows, the first ones, that looks at so many positions, and bind all of it."""
        arena, model = self._arena, self.model
        context = plan.context(profile, self._device, arena.at("scratch"))
        self._contexts.append(context)
        context.shape("input_ids", rows, 1)
        context.shape("input_lengths", rows)
        context.shape("write_index", rows)
        context.shape("positions", positions)
        for layer in range(model.layers):
            for name in cache_names(layer):
                context.shape(name, rows, model.kv_heads, self._shape.capacity, model.head_dim)
        self._bind_adapter(context, adapter)
        context.address("input_ids", arena.at(f"{of}_ids"))
        context.address("input_lengths", arena.at(f"{of}_lengths"))
        context.address("write_index", arena.at(f"{of}_index"))
        context.address("positions", arena.at("positions"))
        context.address("logits", arena.at(f"{of}_logits"))
        self._bind_row(context, 0)
        context.ready()
        return context

    def _bind_adapter(self, context: Context, index: int | None) -> None:
        """Have it compute with this adapter, or with none."""
        assert self._plan is not None
        shapes = {} if index is None else self._of_adapters.shapes(index)
        for name in self._plan.adapter:
            context.shape(name, *(self._plan.adapter_shape(name) if index is None else shapes[name]))
            context.address(name, self._arena.at("no_adapter") if index is None else self._arena.at(name, index))

    def _bind_row(self, context: Context, row: int) -> None:
        """Have its rows begin with this one."""
        for layer, of_layer in enumerate(self._cache_addresses(row)):
            for name, address in zip(cache_names(layer), of_layer, strict=True):
                context.cache(name, address)

    def _feed(self, start: int, ids: npt.NDArray[np.int32]) -> None:
        """Take tokens of the row that is bound through the plan, at positions from `start` on."""
        arena, context = self._arena, self._of_prompts
        self._staging.write(Lines(arena.at("prompt_ids"), ids.nbytes), ids)
        self._staging.write(arena.lines("prompt_lengths"), np.array([len(ids)], np.int32))
        self._staging.write(arena.lines("prompt_index"), np.array([start], np.int64))
        context.shape("input_ids", 1, len(ids))
        context.shape("positions", start + len(ids))
        context.ready()
        context.run()

    def _decode(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        for row in rows:
            self._clear_behind(row)
        having = dict[str | None, list[tuple[int, int]]]()
        for row, position in zip(rows, positions, strict=True):
            having.setdefault(self._adapter_names[row], []).append((row, position))
        for adapter, some in having.items():
            if len(having) > 1:
                self._tell_step(some)
            self._take_step([row for row, _ in some], [position for _, position in some], adapter)
        if len(having) > 1:
            self._tell_step([(row, position + 1) for row, position in zip(rows, positions, strict=True)])

    def _tell_step(self, step: Sequence[tuple[int, int]]) -> None:
        """Have the device know the rows of a step, and their positions."""
        rows, positions = zip(*step, strict=True)
        self._staging.write(self._arena.lines("step"), step_of(self._shape, rows, positions))

    def _take_step(self, rows: Sequence[int], positions: Sequence[int], adapter: str | None) -> None:
        """Launch a step of rows that have the same adapter, and that the device knows."""
        step = self._whole(adapter) if self._decodes == WHOLE else self._fitted(rows, positions, adapter)
        context = self._context_of(step)
        self._graphs.run(("decode", step, context.snapshot), lambda: self._launch_step(step, context))

    def _whole(self, adapter: str | None) -> Step:
        """The step that serves any rows of an adapter, of any length."""
        return Step(self.kv_cache.rows, self.kv_cache.capacity, adapter)

    def _fitted(self, rows: Sequence[int], positions: Sequence[int], adapter: str | None) -> Step:
        """Give the smallest step that serves these rows, whose tokens come to these positions."""
        whole = self._whole(adapter)
        return Step(
            min(bucket(max(rows) + 1), whole.rows),
            min(max(bucket(max(positions) + 1), _FEWEST), whole.positions),
            whole.adapter,
        )

    def _context_of(self, step: Step) -> Context:
        """Give the context of a step, which is made and warmed up when it is first asked for."""
        if step not in self._of_steps:
            assert self._plan is not None
            adapter = None if step.adapter is None else self._adapters[step.adapter].index
            context = self._bound(self._plan, DECODE, "batch", step.rows, step.positions, adapter)
            # What TensorRT does late is done before a graph is recorded; whatever this writes, the step writes again.
            self._launch_into_batch(step)
            context.run()
            self._of_steps[step] = context
        return self._of_steps[step]

    def _launch_step(self, step: Step, context: Context) -> None:
        """Take a step of the first rows: those of `step` on the device get logits, and are counted on."""
        arena, slots = self._arena, self._shape.slots
        self._launch_into_batch(step)
        context.run()
        self._device.launch(
            "out_of_batch", (_COPIERS, slots, 1), 256, slots, arena.at("step", 0), arena.at("step", 1),
            arena.at("batch_logits"), arena.at("logits"), behind=True,
        )  # fmt: skip

    def _launch_into_batch(self, step: Step) -> None:
        arena = self._arena
        self._device.launch(
            "into_batch", (1, 1, 1), 256, step.rows, self._shape.slots, self._shape.capacity - SPARE,
            arena.at("step", 0), arena.at("step", 1), arena.at("drawn"), arena.at("batch_ids"), arena.at("batch_index"),
        )  # fmt: skip

    def _clear_behind(self, row: int) -> None:
        """Make zero what lies behind the position that a row's next token takes."""
        behind = self.kv_cache.length(row) + 1
        if self._written[row] > behind:
            for lines in self._stretch(row, behind, self._written[row]):
                self._device.clear(lines)
        self._written[row] = behind

    def _cache_addresses(self, row: int) -> list[tuple[int, int]]:
        """Give where the row's keys and values of each layer begin."""
        at = self._arena.at
        layers = range(self.model.layers)
        return [(at("kv_cache", layer, 0, row), at("kv_cache", layer, 1, row)) for layer in layers]

    def _stretch(self, row: int, first: int, last: int) -> list[Lines]:
        """A piece for each layer's keys and values, of a line for each head."""
        model, of_a_position = self.model, self.model.head_dim * self._numbers.itemsize
        return [
            Lines(
                address + first * of_a_position,
                (last - first) * of_a_position,
                model.kv_heads,
                self._shape.capacity * of_a_position,
            )
            for of_layer in self._cache_addresses(row)
            for address in of_layer
        ]


def _state(shape: Shape, dtype: str, *, chunk: int) -> Plan:
    """Plan all memory but what TensorRT takes for the weights, and its scratch memory."""
    model, rows = shape.model, shape.rows
    return {
        "kv_cache": Array((model.layers, 2, rows, model.kv_heads, shape.capacity, model.head_dim), dtype),
        **shape.state_of_rows(),
        "positions": Array((shape.capacity,), "int64"),  # 0, 1, ...
        "batch_ids": Array((rows, 1), "int32"),
        "batch_lengths": Array((rows,), "int32"),  # all 1
        "batch_index": Array((rows,), "int64"),
        "batch_logits": Array((rows, model.vocab), "float32"),  # of rows that rest too
        "prompt_ids": Array((1, chunk), "int32"),
        "prompt_lengths": Array((1,), "int32"),
        "prompt_index": Array((1,), "int64"),
        "prompt_logits": Array((1, model.vocab), "float32"),
    }


def _fitting(plan: PlanIdentity, rows: int, capacity: int, dtype: str | None) -> int:
    """Give the tokens that a row of a plan holds, at most those that were asked for; refuse one that is too small."""
    if dtype not in (None, plan.dtype):
        raise OptionError(f"the plan is in {printable(plan.dtype, 40)}: load it with that dtype")
    if plan.dtype not in DTYPES:
        raise OptionError(f"the plan is in {printable(plan.dtype, 40)}: expected {', '.join(DTYPES)}")
    if rows > plan.max_batch:
        raise OptionError(f"the plan is for {plan.max_batch} rows: load it with max_batch={plan.max_batch}")
    if capacity > plan.capacity or plan.capacity <= SPARE:
        raise OptionError(
            f"the plan has {plan.capacity} positions, {SPARE} of them spare: load it with capacity="
            f"{plan.capacity - SPARE}, or export the checkpoint with --capacity {capacity + SPARE} and build another"
        )
    return min(capacity, plan.capacity - SPARE)


def _check_aligned(model: ModelConfig, dtype: str, positions: int) -> None:
    """See that each row's part of a cache begins where TensorRT takes it."""
    of_a_position = model.kv_heads * model.head_dim * CACHE_NUMBERS[dtype].itemsize
    if positions * of_a_position % ALIGNMENT:
        step = ALIGNMENT // math.gcd(ALIGNMENT, of_a_position)
        raise OptionError(
            f"the plan has {positions} positions, and the rows of its caches begin at no multiple of {ALIGNMENT} "
            f"bytes: export the checkpoint with a --capacity that is a multiple of {step}, and build another"
        )


def _fitting_rank(plan: PlanIdentity, rank: int | None) -> int:
    """Give the rank of adapters that there is room for; refuse a plan that takes none, or none of this rank."""
    again = f"export the checkpoint with --lora-rank {rank or DEFAULT_RANK}, and build another"
    if plan.lora_rank is None:
        raise OptionError(f"the plan takes no adapters: {again}")
    if rank is not None and rank > plan.lora_rank:
        raise OptionError(
            f"the plan takes adapters of rank {plan.lora_rank} at most: load it with "
            f"max_lora_rank={plan.lora_rank}, or {again}"
        )
    return rank or plan.lora_rank
