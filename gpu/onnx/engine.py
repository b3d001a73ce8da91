"""The ONNX engine: the exported graph, run by ONNX Runtime on memory that was bound once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.adapter import DEFAULT_RANK, Adapter, numbers_of_adapter
from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.errors import OptionError
from gpu.host_engine import HostEngine
from gpu.memory import check_capacity, check_weights, too_large
from gpu.onnx.cached import DTYPE, cached_export
from gpu.onnx.codes import CODES
from gpu.onnx.data import places
from gpu.onnx.export import check_export, told
from gpu.onnx.fuse import cannot_fuse, fused, lone_tokens_accompanied
from gpu.onnx.graph import cache_names, model_of
from gpu.onnx.identity import FORMAT, Identity
from gpu.onnx.lora import AdapterInputs, no_adapter
from gpu.onnx.products import EMBEDDINGS
from gpu.onnx.runtime import VERSION, Binding, Session, bind, bind_cache, open_session
from gpu.processor import processor

_CHUNK = 96  # tokens of a prompt that go through the graph together
_TOGETHER = 8  # rows at most that take a decode step together
_NOT_YET, _IN_TURN = "none yet", "one row after the other"


class OnnxEngine(HostEngine):
    """Runs a model of the Llama family in float32: the graph that `gpu.onnx.export` made of it.

    The file's graph is read, and what attends in it becomes one operator a layer, see `gpu.onnx.fuse`. Where the
    operator does not take the model's heads, the graph runs as it is, and rows decode one after the other. With
    `quantize`, products are of codes of 8 or 4 bits, and activations are rounded to 8 bits where they meet them.

    The graph takes the cache and gives it back in the same memory, and is told how many positions each row has: a step
    costs what the rows hold, not what they could hold. Prompts, and a row that decodes alone, go through it on the
    memory that was bound to the row. Rows that decode together go through it on memory that was bound to neighbours;
    who rests among them is computed too, and left as it was. The first such step of so many rows is computed both
    ways: unless the bits are the same, rows decode one after the other from then on, and `facts` says so. So a row's
    bits never depend on who shares its batch.

    With room for adapters it runs the graph that takes one, over the same weights. Rows that have the same adapter
    decode together; a row that has none gets zeros of rank 1, which change no bit.

    Parameters
    ----------
    model : ModelConfig
        The shape of the model.
    checkpoint : Checkpoint
        Its weights; read here if they were not exported before.
    rows : int
        Sequences that fit at once.
    capacity : int
        Tokens a row can hold.
    threads : int, optional
        Threads of ONNX Runtime, 1 if not given.
    quantize : {"int8", "int4"}, optional
        Weights as codes, see `gpu.onnx.codes`; quantised here if they were not before.
    export : str or Path, optional
        A folder that `phasewalk export` made of this checkpoint, instead of the one in the user's cache folder.
    adapters, max_lora_rank : int
        How many LoRA adapters there is room for, and of which rank at most: that of the export, if its graph takes any.

    Raises
    ------
    ExportError
        If the export cannot be made or kept, is damaged, or is one of another model.
    OptionError
        If there are no such codes, or the export is made for others, or for another dtype, capacity or number of rows,
        or for adapters of no such rank.
    """

    name = "onnx"

    def __init__(
        self,
        model: ModelConfig,
        checkpoint: Checkpoint,
        *,
        rows: int,
        capacity: int,
        threads: int | None = None,
        quantize: str | None = None,
        export: str | Path | None = None,
        adapters: int = 0,
        max_lora_rank: int | None = None,
    ) -> None:
        if quantize not in (None, *CODES):
            raise OptionError(f"quantize is {quantize!r}: expected {' or '.join(CODES)}")
        chunk, rank = min(_CHUNK, capacity), min(max_lora_rank or DEFAULT_RANK, model.hidden)

        def needs(rows: int, capacity: int) -> dict[str, int]:
            seen = capacity * (model.heads * chunk + model.head_dim)  # scores, cosines and sines
            return {
                "KV cache": 4 * rows * capacity * model.kv_numbers,
                "buffers": 4 * (rows * (capacity + 2 * model.vocab) + min(rows, _TOGETHER) * model.vocab),
                "working memory": 4 * (seen + chunk * (4 * model.hidden + 3 * model.intermediate)),
                "adapters": 4 * adapters * numbers_of_adapter(model, rank),
            }

        sizes = {place.name: place.size for place in places(model, DTYPE, quantize)}
        weights = sum(sizes.values())
        check_weights(weights)
        check_capacity(rows, capacity, needs, weights=weights)
        if export is None:
            folder, identity, graph = cached_export(checkpoint, model, quantize)
        else:
            folder, identity, graph = check_export(Path(export), model, model_fingerprint(checkpoint.folder))
            _check_fits(identity, rows, capacity, quantize)
            if adapters:
                rank = _fitting_rank(identity, rank if max_lora_rank else None)
        self._exported_rank = identity.lora_rank
        if adapters and identity.lora_rank is None:  # the weights of both graphs lie alike
            identity = replace(identity, lora_rank=rank)
            graph = model_of(model, identity)
        try:
            super().__init__(model, rows=rows, capacity=capacity, adapters=adapters, max_lora_rank=rank)
            self._adapter_inputs = AdapterInputs(model, count=adapters, rank=rank) if adapters else None
        except MemoryError:
            raise too_large(rows, capacity, needs, weights=weights) from None
        self._threads, self.prefill_chunk, self._identity = threads or 1, chunk, identity
        table_is_head = model.tied_embeddings and quantize is None
        unread = 0 if table_is_head else sizes[EMBEDDINGS]  # but for the rows of the tokens
        self._weight_bytes = weights - unread
        checkpoint.announce("starting ONNX Runtime")
        self._unfused = cannot_fuse(model)
        if self._unfused is None:
            with told(folder):
                graph = fused(graph, model, identity)
        if identity.lora_rank is not None:
            graph = lone_tokens_accompanied(graph)
        self._inputs = [entry.name for entry in graph.graph.input]
        self._session: Session | None = open_session(graph.SerializeToString(), data=folder, threads=self._threads)
        self._batches = _NOT_YET if self._unfused is None else f"{_IN_TURN}: {self._unfused}"
        # So many rows together, of this adapter, were seen to have the bits that each has alone.
        self._same: set[tuple[int, int | None]] = set()
        half = model.head_dim // 2
        cosine, sine = model.rope.table(model.head_dim, capacity)
        self._of_all_rows = {  # inputs that are no row's
            "cosine_table": cosine[:, :half].copy(), "sine_table": sine[:, half:].copy(),  # [capacity, head_dim / 2]
            **({} if identity.lora_rank is None else no_adapter(model)),
        }  # fmt: skip
        self._positions = np.arange(capacity)  # [capacity]
        self._ids = np.zeros((rows, 1), np.int32)  # [rows, 1], tokens of a step
        self._lengths = np.ones(rows, np.int32)  # [rows], tokens that are fed
        self._first = np.zeros(rows, np.int64)  # [rows], the position of the first one
        self._last = np.zeros(rows, np.int32)  # [rows], that of the last one
        self._longest = np.ones(1, np.int32)  # positions of the row that has most of them
        self._together = np.zeros((min(rows, _TOGETHER), model.vocab), np.float32)  # of rows that decode together
        # Of a step, by the first row, how many, and the adapter; of a prompt, whose tokens are bound chunk by chunk, by
        # the row and the adapter.
        self._bindings: dict[tuple[int, int, int | None], Binding] = {}
        self._prompt_bindings: dict[tuple[int, int | None], Binding] = {}
        for row in range(rows):
            self._bound(row, 1, None)
            self._bound_to_prompt(row, None)

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, row by row and chunk by chunk, see `Engine.prefill`."""
        self._home.check()
        with self._lock:
            self._opened()
            cache, prompts = self.kv_cache, self._prompts(rows)
            for row, ids in zip(rows, prompts, strict=True):
                start = cache.length(row)
                for first in range(0, len(ids), self.prefill_chunk):
                    self._feed(row, start + first, ids[first : first + self.prefill_chunk])
            for row, ids in zip(rows, prompts, strict=True):
                cache.commit(row, len(ids))

    def decode(self, rows: Sequence[int]) -> None:
        """Feed one token a row, see `Engine.decode`."""
        self._home.check()
        with self._lock:
            self._opened()
            cache = self.kv_cache
            self._check_rows(rows)
            for row in rows:
                cache.check_room(row, 1)
            for adapter, having in self._by_adapter(rows).items():
                for some in self._neighbours(having):
                    self._step(some, adapter)
            for row in rows:
                cache.commit(row, 1)

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads, if they read the weights together."""
        used = sum(self.kv_cache.length(row) for row in rows)
        return self._weight_bytes + self._adapter_bytes(rows) + used * self.kv_cache.bytes_per_position

    def environment(self) -> dict[str, Any]:
        """Tell what can change a bit, see `Engine.environment`."""
        return {
            "engine": self.name,
            "dtype": DTYPE,
            "quantize": self._identity.quantize,
            **({} if self._identity.quantize is None else {"activations": "int8"}),
            **({} if self._exported_rank is None else {"lora_rank": self._exported_rank}),
            "rows": self.kv_cache.rows,
            "capacity": self.kv_cache.capacity,
            "threads": self._threads,
            "graph": FORMAT,
            "attention": "fused" if self._unfused is None else "as exported",
            "onnxruntime": VERSION,
            "numpy": np.__version__,
            **processor(),
        }

    def facts(self) -> dict[str, str | int]:
        """Tell how rows decode that share a batch."""
        return {"batches": self._batches}

    def close(self) -> None:
        """Give the weights back; prefill and decode are refused from now on."""
        if self._home.left:  # the lock may be held for ever, and nobody here can compute
            return
        with self._lock:
            self._session = None
            self._bindings.clear()
            self._prompt_bindings.clear()

    def _neighbours(self, rows: Sequence[int]) -> list[list[int]]:
        """Part rows into those that take a step together; a full row among them, which rests, parts them as well."""
        cache, groups = self.kv_cache, list[list[int]]()
        for row in sorted(rows):
            if groups and row - groups[-1][0] < _TOGETHER:
                between = range(groups[-1][-1] + 1, row)
                if all(cache.length(resting) < cache.capacity for resting in between):
                    groups[-1].append(row)
                    continue
            groups.append([row])
        return groups

    def _step(self, rows: list[int], adapter: int | None) -> None:
        """Feed the next tokens of rows of one adapter: together, if that gives the bits that each has alone."""
        count = rows[-1] - rows[0] + 1
        if count > 1 and (count, adapter) in self._same:
            self._feed_together(rows, adapter)
            return
        for row in rows:
            self._feed(row, self.kv_cache.length(row), self.buffers.next_token[row : row + 1])
        if count > 1 and not self._batches.startswith(_IN_TURN):
            self._try_together(rows, adapter)

    def _try_together(self, rows: list[int], adapter: int | None) -> None:
        """Compute a step once more, in company, and go on so if it gives the same bits; else leave it as it was."""
        alone = self._left(rows)
        self._feed_together(rows, adapter)
        in_company = self._left(rows)
        if all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(alone, in_company, strict=True)):
            self._same.add((rows[-1] - rows[0] + 1, adapter))
            self._batches = f"up to {len(self._together)} rows together"
            return
        self._same.clear()
        self._batches = f"{_IN_TURN}: this build of ONNX Runtime rounds a row otherwise in company"
        for index, row in enumerate(rows):
            self.buffers.logits[row] = alone[2 * index]
            self.buffers.kv_cache[:, :, row, :, self.kv_cache.length(row)] = alone[2 * index + 1]

    def _left(self, rows: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Copy what a step left of each row: its logits, and the keys and values at its position."""
        left = []
        for row in rows:
            position = self.kv_cache.length(row)
            left += [self.buffers.logits[row].copy(), self.buffers.kv_cache[:, :, row, :, position].copy()]
        return left

    def _feed_together(self, rows: list[int], adapter: int | None) -> None:
        """Feed each row's next token at its position, and leave its logits; rows among them are left as they were."""
        buffers, first, count = self.buffers, rows[0], rows[-1] - rows[0] + 1
        here = slice(first, first + count)
        lengths = self.kv_cache.lengths[here]
        self._first[here] = self._last[here] = lengths
        self._lengths[here], self._longest[0] = 1, max(lengths) + 1
        self._ids[here] = 0
        self._ids[rows, 0] = buffers.next_token[rows]
        resting = [(row, lengths[row - first]) for row in {*range(first, first + count)}.difference(rows)]
        behind = [buffers.kv_cache[:, :, row, :, position].copy() for row, position in resting]
        self._run(self._bound(first, count, adapter))
        for (row, position), before in zip(resting, behind, strict=True):
            buffers.kv_cache[:, :, row, :, position] = before
        buffers.logits[rows] = self._together[[row - first for row in rows]]

    def _feed(self, row: int, start: int, ids: npt.NDArray[np.int32]) -> None:
        """Run tokens of a row through the graph, at positions from `start` on; its logits are those of the last one."""
        end, is_step = start + len(ids), len(ids) == 1
        self._lengths[row], self._first[row], self._last[row], self._longest[0] = len(ids), start, end - 1, end
        adapter = self._adapter_index(row)
        binding = self._bound(row, 1, adapter) if is_step else self._bound_to_prompt(row, adapter)
        if is_step:
            self._ids[row] = ids
        else:
            bind(binding.bind_input, "input_ids", ids[None])
        if self._unfused is not None:  # it tells by their number how many are looked at
            bind(binding.bind_input, "positions", self._positions[:end])
        self._run(binding)

    def _by_adapter(self, rows: Sequence[int]) -> dict[int | None, list[int]]:
        """Sort rows by the adapter that they have."""
        having: dict[int | None, list[int]] = {}
        for row in rows:
            having.setdefault(self._adapter_index(row), []).append(row)
        return having

    def _place_adapter(self, index: int, adapter: Adapter) -> None:
        with self._lock:
            self._opened()
            assert self._adapter_inputs is not None, "there is room"
            self._adapter_inputs.load(index, adapter)

    def _bound(self, first: int, count: int, adapter: int | None) -> Binding:
        """Give the binding of neighbours that take a step, which is made once."""
        key = first, count, adapter
        if key not in self._bindings:
            self._bindings[key] = self._new_binding(first, count, adapter)
        return self._bindings[key]

    def _bound_to_prompt(self, row: int, adapter: int | None) -> Binding:
        if (row, adapter) not in self._prompt_bindings:
            self._prompt_bindings[row, adapter] = self._new_binding(row, 1, adapter)
        return self._prompt_bindings[row, adapter]

    def _new_binding(self, first: int, count: int, adapter: int | None) -> Binding:
        """Bind all that the graph takes and gives to the memory of neighbours; past and present cache are the same."""
        binding, here = self._opened().io_binding(), slice(first, first + count)
        taken = {
            "input_ids": self._ids[here], "input_lengths": self._lengths[here], "write_index": self._first[here],
            "positions": self._positions, "last_position": self._last[here], "longest": self._longest,
            **self._of_all_rows,
        }  # fmt: skip
        if adapter is not None and self._adapter_inputs is not None:
            taken |= self._adapter_inputs.of(adapter)
        for name in taken.keys() & self._inputs:
            bind(binding.bind_input, name, taken[name])
        for layer in range(self.model.layers):
            for name, cache in zip(cache_names(layer), self.buffers.kv_cache[layer], strict=True):
                bind_cache(binding, name, cache[here])
        bind(binding.bind_output, "logits", self.buffers.logits[here] if count == 1 else self._together[:count])
        return binding

    def _run(self, binding: Binding) -> None:
        self._opened().run_with_iobinding(binding)

    def _opened(self) -> Session:
        if self._session is None:
            raise RuntimeError("the engine is closed: load it again")
        return self._session


def _check_fits(identity: Identity, rows: int, capacity: int, quantize: str | None) -> None:
    """Refuse an export that was made for other rows."""
    if identity.dtype != DTYPE:
        raise OptionError(f"the export is in {identity.dtype}, the engine onnx computes in {DTYPE}: export in {DTYPE}")
    if identity.quantize != quantize:
        raise OptionError(
            f"the export has {identity.quantize or identity.dtype} weights: load it with quantize={identity.quantize!r}"
        )
    if identity.capacity not in (None, capacity):
        raise OptionError(
            f"the export has a capacity of {identity.capacity}: load it with capacity={identity.capacity}"
        )
    if identity.max_batch is not None and rows > identity.max_batch:
        raise OptionError(f"the export is for {identity.max_batch} rows: load it with max_batch={identity.max_batch}")


def _fitting_rank(identity: Identity, rank: int | None) -> int:
    """Give the rank of adapters that there is room for; refuse an export that takes none, or none of this rank."""
    if identity.lora_rank is None:
        raise OptionError(
            f"the export takes no adapters: export the checkpoint with --lora-rank {rank or DEFAULT_RANK}"
        )
    if rank is not None and rank > identity.lora_rank:
        raise OptionError(
            f"the export takes adapters of rank {identity.lora_rank} at most: load it with "
            f"max_lora_rank={identity.lora_rank}, or export the checkpoint with --lora-rank {rank}"
        )
    return rank or identity.lora_rank
