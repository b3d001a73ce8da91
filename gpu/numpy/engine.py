"""The NumPy engine: float32 on the CPU, the default where there is no GPU and the reference for every other engine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from gpu.adapter import DEFAULT_RANK, Adapter
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import Checkpoint
from gpu.errors import CheckpointError, OptionError
from gpu.host_engine import HostEngine
from gpu.memory import check_capacity, check_weights, size, too_large
from gpu.numpy.adapters import DOWN, GATE_UP, OUTPUT, QKV, Adapters
from gpu.numpy.blas import Blas
from gpu.numpy.layers import Attention, rms_norm, rotate, swiglu
from gpu.numpy.linear import Linear
from gpu.numpy.together import Together, usual_threads
from gpu.numpy.weights import Weights
from gpu.numpy.workspace import Workspace
from gpu.printable import printable
from gpu.processor import processor

ALONE, TOGETHER = "alone", "together"  # ways to decode
_CHUNK = 96  # tokens of a prompt that go through the layers together
_WORTH_THREADS = 4e8  # floating-point operations: a smaller product is done before threads have paid for their start


class NumpyEngine(HostEngine):
    """Runs a model of the Llama family in NumPy.

    A decode step reads each weight once, by one dot product an output element (`np.vecdot`): it keeps up with the
    memory, allocates nothing, and gives a row the same bits whoever shares its batch. Prefill multiplies matrices
    with the BLAS that NumPy brings: large products on that library's threads, small ones on one, as threads that wait
    for each other stall when another process wants a core.

    Parameters
    ----------
    model : ModelConfig
        The shape of the model.
    checkpoint : Checkpoint
        Its weights; read here.
    rows : int
        Sequences that fit at once.
    capacity : int
        Tokens a row can hold.
    threads : int, optional
        1, the default, decodes on the calling thread; more on the threads of the BLAS, see `Linear`. Together, so many
        threads of this process share the products, two if not given, and give the same bits as one.
    decode : {"alone", "together"}, optional
        How the rows of a step go through the matrices: alone if not given, each with dot products of its own. Together
        they do so in blocks, see `Together`: a block of 16 takes little longer than one row of it, so that many rows
        are much faster, but a row without company about three times as slow. A row has the same bits in any company
        in either way, and others in the one way than in the other. Engines that decode together take turns.
    adapters, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most.

    Raises
    ------
    OptionError
        If there is no such way to decode, or rows cannot decode together with the BLAS that is at hand.
    """

    name = "numpy"

    def __init__(
        self,
        model: ModelConfig,
        checkpoint: Checkpoint,
        *,
        rows: int,
        capacity: int,
        threads: int | None = None,
        decode: str | None = None,
        adapters: int = 0,
        max_lora_rank: int = DEFAULT_RANK,
    ) -> None:
        if decode not in (None, ALONE, TOGETHER):
            raise OptionError(f"the engine numpy has no decode {printable(decode, 40)}: expected {ALONE} or {TOGETHER}")
        chunk, max_lora_rank = min(_CHUNK, capacity), min(max_lora_rank, model.hidden)

        def needs(rows: int, capacity: int) -> Mapping[str, int]:
            attention = capacity * (2 * model.heads + model.query_group * chunk + 4 * model.head_dim)
            return {
                "KV cache": 4 * rows * capacity * model.kv_numbers,
                "buffers": 4 * rows * (capacity + 2 * model.vocab),
                "working memory": 4 * (Workspace.numbers(model) * (rows + chunk) + attention),
                "adapters": 4 * Adapters.numbers(model, count=adapters, rank=max_lora_rank, chunk=chunk)
                if adapters
                else 0,
            }

        weights = 4 * checkpoint.numbers
        check_weights(weights)
        check_capacity(rows, capacity, needs, weights=weights)
        try:
            super().__init__(model, rows=rows, capacity=capacity, adapters=adapters, max_lora_rank=max_lora_rank)
            self._rope = model.rope.table(model.head_dim, capacity)  # [2 (cosine, signed sine), capacity, head_dim]
            self._attention = Attention(
                heads=model.heads, kv_heads=model.kv_heads, head_dim=model.head_dim, capacity=capacity, chunk=chunk
            )
            self._chunk = Workspace.allocate(model, chunk)
            self._step = Workspace.allocate(model, rows)
            self._changes: Adapters | None = None
            if adapters:
                self._changes = Adapters(model, checkpoint, count=adapters, rank=max_lora_rank, chunk=chunk)
        except MemoryError:
            raise too_large(rows, capacity, needs, weights=weights) from None
        try:
            self._weights: Weights | None = Weights.read(model, checkpoint)
        except MemoryError:
            raise CheckpointError(f"the system refused the {size(weights)} that the weights take") from None
        self._weight_bytes = self._weights.bytes_per_step
        self.prefill_chunk = chunk
        self._blas = Blas()
        self._together: Together | None = None
        if decode == TOGETHER:
            with self._blas.at_work(one_thread=True):
                self._together = Together(self._weights.shapes, rows=rows, threads=threads or usual_threads())
            self._threads = self._together.threads
        else:
            self._threads = threads or 1
        self._linear = self._together or Linear(self._threads)
        self._steps: dict[int, Workspace] = {}  # by the number of rows in a step

    def decode(self, rows: Sequence[int]) -> None:
        """Feed one token a row, see `Engine.decode`."""
        self._home.check()
        with self._lock, self._decode_threads(), np.errstate(over="ignore"):
            model, weights, cache = self.model, self._opened(), self.kv_cache
            linear, attend, eps = self._linear, self._attention.attend_one, model.rms_norm_eps
            self._check_rows(rows)
            for row in rows:
                cache.check_room(row, 1)

            step = self._workspace(len(rows))
            queries, turned = model.heads, model.heads + model.kv_heads
            qkv, qk = step.qkv.reshape(len(rows), -1), step.qkv[:, :turned]
            q, k, v = step.qkv[:, :queries], step.qkv[:, queries:turned], step.qkv[:, turned:]
            gate, up = step.gate_up[:, : model.intermediate], step.gate_up[:, model.intermediate :]
            attended = step.attended.reshape(len(rows), -1)
            positions = [cache.length(row) for row in rows]
            adapted = self._adapted(rows)
            for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
                step.x[index] = weights.embedding[self.buffers.next_token[row]]
                step.cosine[index], step.sine[index] = self._rope[0, position], self._rope[1, position]

            for number, (layer, (keys, values)) in enumerate(zip(weights.layers, self.buffers.kv_cache, strict=True)):
                rms_norm(step.x, step.normed, step.norms, eps=eps)
                linear(layer.qkv, step.normed, qkv, step.columns)
                for add, adapter, index in adapted:
                    add(adapter, number, QKV, step.normed[index], qkv[index])
                if layer.qkv_bias is not None:
                    qkv += layer.qkv_bias
                if layer.qk_norm is not None:
                    rms_norm(qk, qk, step.head_norms, eps=eps)
                    qk *= layer.qk_norm
                rotate(qk, step.cosine, step.sine, step.swapped)
                for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
                    keys[row, :, position], values[row, :, position] = k[index], v[index]
                    used = slice(position + 1)
                    attend(q[index], keys[row, :, used], values[row, :, used], step.attended[index])
                linear(layer.output, attended, step.delta, step.columns)
                for add, adapter, index in adapted:
                    add(adapter, number, OUTPUT, attended[index], step.delta[index])
                if layer.output_bias is not None:
                    step.delta += layer.output_bias
                step.x += step.delta

                rms_norm(step.x, step.normed, step.norms, eps=eps)
                linear(layer.gate_up, step.normed, step.gate_up, step.columns)
                for add, adapter, index in adapted:
                    add(adapter, number, GATE_UP, step.normed[index], step.gate_up[index])
                if layer.gate_up_bias is not None:
                    step.gate_up += layer.gate_up_bias
                swiglu(gate, up, step.sigmoid)
                linear(layer.down, gate, step.delta, step.columns)
                for add, adapter, index in adapted:
                    add(adapter, number, DOWN, gate[index], step.delta[index])
                if layer.down_bias is not None:
                    step.delta += layer.down_bias
                step.x += step.delta

            self._project(rows, step, weights)
            for row in rows:
                cache.commit(row, 1)

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, row by row and chunk by chunk, see `Engine.prefill`."""
        self._home.check()
        with self._lock, np.errstate(over="ignore"):
            cache, weights = self.kv_cache, self._opened()
            prompts = self._prompts(rows)
            for row, ids in zip(rows, prompts, strict=True):
                count, start = len(ids), cache.length(row)
                for first in range(0, count, len(self._chunk.x)):
                    chunk = ids[first : first + len(self._chunk.x)]
                    space = self._chunk.first(len(chunk))
                    np.take(weights.embedding, chunk, axis=0, out=space.x, mode="clip")
                    with self._prefill_threads(len(chunk)):
                        self._prefill_chunk(row, start + first, space, weights)
                step = self._workspace(1)
                step.x[0] = space.x[-1]
                with self._decode_threads():
                    self._project([row], step, weights)
            for row, ids in zip(rows, prompts, strict=True):
                cache.commit(row, len(ids))

    def _prefill_threads(self, tokens: int) -> AbstractContextManager[Any]:
        """Let the BLAS have its threads, or only one, for the products of a chunk of so many tokens."""
        largest = 2 * tokens * self.model.hidden * 2 * self.model.intermediate
        return self._blas.at_work(one_thread=largest < _WORTH_THREADS)

    def _decode_threads(self) -> AbstractContextManager[Any]:
        """Let the BLAS have its threads if decode uses them; one where decode has threads of its own."""
        if self._together is not None:
            return self._blas.at_work(one_thread=True)
        return self._blas.at_work(one_thread=False) if self._threads > 1 else nullcontext()

    def _workspace(self, rows: int) -> Workspace:
        if rows not in self._steps:
            self._steps[rows] = self._step.first(rows)
        return self._steps[rows]

    def _prefill_chunk(self, row: int, start: int, space: Workspace, weights: Weights) -> None:
        """Take the embedded tokens of a chunk, at positions from `start` on, through all layers."""
        model, eps = self.model, self.model.rms_norm_eps
        tokens, end = len(space.x), start + len(space.x)
        queries, turned = model.heads, model.heads + model.kv_heads
        qkv, qk = space.qkv.reshape(tokens, -1), space.qkv[:, :turned]
        q, k, v = space.qkv[:, :queries], space.qkv[:, queries:turned], space.qkv[:, turned:]
        gate, up = space.gate_up[:, : model.intermediate], space.gate_up[:, model.intermediate :]
        cosine, sine = self._rope[:, start:end, None]
        attended = space.attended.reshape(tokens, -1)
        adapter, changes = self._adapter_index(row), self._changes

        for number, (layer, (keys, values)) in enumerate(zip(weights.layers, self.buffers.kv_cache, strict=True)):
            rms_norm(space.x, space.normed, space.norms, eps=eps)
            np.matmul(space.normed, layer.qkv.T, out=qkv)
            if changes is not None and adapter is not None:
                changes.add_to_chunk(adapter, number, QKV, space.normed, qkv)
            if layer.qkv_bias is not None:
                qkv += layer.qkv_bias
            if layer.qk_norm is not None:
                rms_norm(qk, qk, space.head_norms, eps=eps)
                qk *= layer.qk_norm
            rotate(qk, cosine, sine, space.swapped)
            keys[row, :, start:end], values[row, :, start:end] = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
            self._attention.attend_chunk(q, keys[row, :, :end], values[row, :, :end], space.attended)
            np.matmul(attended, layer.output.T, out=space.delta)
            if changes is not None and adapter is not None:
                changes.add_to_chunk(adapter, number, OUTPUT, attended, space.delta)
            if layer.output_bias is not None:
                space.delta += layer.output_bias
            space.x += space.delta

            rms_norm(space.x, space.normed, space.norms, eps=eps)
            np.matmul(space.normed, layer.gate_up.T, out=space.gate_up)
            if changes is not None and adapter is not None:
                changes.add_to_chunk(adapter, number, GATE_UP, space.normed, space.gate_up)
            if layer.gate_up_bias is not None:
                space.gate_up += layer.gate_up_bias
            swiglu(gate, up, space.sigmoid)
            np.matmul(gate, layer.down.T, out=space.delta)
            if changes is not None and adapter is not None:
                changes.add_to_chunk(adapter, number, DOWN, gate, space.delta)
            if layer.down_bias is not None:
                space.delta += layer.down_bias
            space.x += space.delta

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads."""
        embedding_row = self.model.hidden * 4
        used = sum(self.kv_cache.length(row) for row in rows)
        positions = used * self.kv_cache.bytes_per_position
        return self._weight_bytes + self._adapter_bytes(rows) + len(rows) * embedding_row + positions

    def environment(self) -> dict[str, Any]:
        """Tell what can change a bit, see `Engine.environment`: the BLAS and the processor do, in prefill."""
        return {
            "engine": self.name,
            "dtype": "float32",
            "rows": self.kv_cache.rows,
            "capacity": self.kv_cache.capacity,
            "threads": self._threads,
            "decode": ALONE if self._together is None else TOGETHER,
            "decode_threads": self._blas.threads if self._threads > 1 and self._together is None else self._threads,
            **({} if self._together is None else {"decode_block": self._together.block}),
            **self._blas.environment(),
            "numpy": np.__version__,
            **processor(),
        }

    def facts(self) -> dict[str, str | int]:
        """Tell how rows decode, if not as they do unless somebody says otherwise."""
        if self._together is None:
            return {}
        block, threads = self._together.block, self._together.threads
        return {"decode": f"{TOGETHER}, in blocks of {block} rows, on {threads} thread{'s' * (threads > 1)}"}

    def close(self) -> None:
        """Give the weights back; prefill and decode are refused from now on."""
        if self._home.left:  # the lock may be held for ever, and nobody here can compute
            return
        with self._lock:
            self._weights = self._changes = None
            if self._together is not None:
                self._together.close()

    def _project(self, rows: Sequence[int], step: Workspace, weights: Weights) -> None:
        """Turn the residual stream of these rows into their logits."""
        rms_norm(step.x, step.normed, step.norms, eps=self.model.rms_norm_eps)
        if weights.final_norm is not None:
            step.normed *= weights.final_norm
        self._linear.scatter(weights.head, step.normed, self.buffers.logits, rows, step.columns)

    def _place_adapter(self, index: int, adapter: Adapter) -> None:
        with self._lock:
            self._opened()
            assert self._changes is not None, "there is room"
            self._changes.load(index, adapter)

    def _adapted(self, rows: Sequence[int]) -> list[tuple[Callable[..., None], int, int]]:
        """Give for each row of a step that has an adapter what adds to its products, which one, and its place."""
        if self._changes is None:
            return []
        indices = [(self._adapter_index(row), place) for place, row in enumerate(rows)]
        return [(self._changes.add, index, place) for index, place in indices if index is not None]

    def _opened(self) -> Weights:
        if self._weights is None:
            raise RuntimeError("the engine is closed: load it again")
        return self._weights
