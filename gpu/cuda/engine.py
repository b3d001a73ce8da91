"""The CUDA engine: all of a step in one graph, and nobody waits but who asks for a value."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gpu.adapter import DEFAULT_RANK, Adapter
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import Checkpoint
from gpu.cuda import adapters as lora
from gpu.cuda import persistent
from gpu.cuda.arena import Arena, Plan, size_of
from gpu.cuda.cache_numbers import CACHE_NUMBERS
from gpu.cuda.decoding import Decoding
from gpu.cuda.device import Device, Lines
from gpu.cuda.device_engine import DeviceEngine
from gpu.cuda.forward import Forward
from gpu.cuda.loading import load
from gpu.cuda.paths import PER_OP, check_path
from gpu.cuda.prefilling import Prefilling
from gpu.cuda.profiling import STEPS, Profiler
from gpu.cuda.shape import Shape, bucket, kernels_digest
from gpu.cuda.weights import places, write_random
from gpu.errors import CapacityError, CheckpointError
from gpu.memory import check_capacity, check_weights, size, too_large
from gpu.profile import DeviceProfile

_COMPARED_FROM = 64 << 20  # bytes of weights


class CudaEngine(DeviceEngine):
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
    adapters, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most. They stay in float32. With room for any,
        steps go one kernel an operation, two more for each product, whatever rows have.
    device : Device, optional
        Where it runs; the first NVIDIA GPU if not given.
    """

    name = "cuda"
    prefill_chunk = 1  # a token's bits do not depend on how many go through the layers with it

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
        adapters: int = 0,
        max_lora_rank: int = DEFAULT_RANK,
        device: Device | None = None,
    ) -> None:
        rank = min(max_lora_rank, model.hidden) if adapters else 0
        shape = Shape(model, rows, capacity, quantize, adapters=adapters, lora_rank=rank)
        shape.check()
        super().__init__(
            shape, capacity=capacity, numbers=CACHE_NUMBERS["bfloat16"], timeout=timeout, device=device,
            adapters=adapters, max_lora_rank=rank,
        )  # fmt: skip
        self._no_whole_step = persistent.missing(shape, self._device)
        if adapters:
            self._no_whole_step = "one kernel for a whole step adds no adapters"
        check_path(decode, self._no_whole_step)
        with self._loading():
            self._bind(checkpoint, decode)

    def _bind(self, checkpoint: Checkpoint | None, decode: str | None) -> None:
        device, shape, rows = self._device, self._shape, self.kv_cache.rows
        weights, free = size_of(shape.weights()), device.memory_free()

        def state(rows: int, capacity: int) -> Plan:
            planned = replace(shape, rows=rows, capacity=capacity)
            return {**planned.state(), **persistent.state(planned), **lora.state(planned)}

        def needs(rows: int, capacity: int) -> dict[str, int]:
            plan = state(rows, capacity)
            cache, room = size_of({"kv_cache": plan["kv_cache"]}), size_of(lora.state(replace(shape, rows=rows)))
            return {"KV cache": cache, "buffers": size_of(plan) - cache - room, "adapters": room}

        quantised = None if shape.quantize else size_of(replace(shape, quantize="int8").weights())
        check_weights(weights, device=free, quantised=quantised)
        check_capacity(rows, self.kv_cache.capacity, needs, weights=weights, device=free)
        try:  # another process may have been faster
            self._weights = Arena(device, shape.weights())
        except MemoryError as error:
            raise CheckpointError(f"the device refused the {size(weights)} that the weights take: {error}") from error
        try:
            self._hold(state(rows, self.kv_cache.capacity))
        except MemoryError as error:
            raise too_large(rows, self.kv_cache.capacity, needs, weights=weights, device=free) from error
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
        if shape.adapters:
            self._staging.write(self._arena.lines("adapters"), np.full(rows, lora.NOBODY, np.int32))
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
        elif whole_steps:
            self._decoding.compare(shape, self._arena, self._staging, self._window)
        if weights > _COMPARED_FROM:
            self._prefilling.compare(self._window)

    # --- what goes in -------------------------------------------------------------------------------------------

    def set_adapter(self, row: int, name: str | None) -> None:
        """Say which adapter this row has from now on."""
        super().set_adapter(row, name)
        if self._shape.adapters:
            index = self._adapter_index(row)
            with self._launching():
                known = np.array([lora.NOBODY if index is None else index], np.int32)
                self._staging.write(self._arena.lines("adapters", row), known)

    def _place_adapter(self, index: int, adapter: Adapter) -> None:
        with self._launching():
            lora.load(index, adapter, self._shape, self._arena, self._staging)

    # --- what is computed ---------------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, all rows together, chunk by chunk, see `Engine.prefill`."""
        with self._launching("prefill", rows):
            prompts = self._prompts_of(rows)
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

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads."""
        used = sum(self.kv_cache.length(row) for row in rows)
        embedding = self._shape.embedding_bytes
        positions = used * self.kv_cache.bytes_per_position
        return self._weight_bytes + self._adapter_bytes(rows) + len(rows) * embedding + positions

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

    def _decode(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        tokens = bucket(len(rows))
        ways = self._shape.ways(max(positions) + 1)
        self._watchdog.path = self._decoding.path(tokens, ways)
        self._decoding.launch(tokens, ways)

    def _stretch(self, row: int, first: int, last: int) -> tuple[Lines]:
        """A line for each layer's keys and values of each head: all of a row's cache lies in one piece."""
        model, numbers = self.model, self.model.head_dim * 2
        lines = Lines(
            self._arena.at("kv_cache", row) + first * numbers,
            (last - first) * numbers,
            model.layers * 2 * model.kv_heads,
            self.kv_cache.capacity * numbers,
        )
        return (lines,)
