"""The ONNX engine: the exported graph, run by ONNX Runtime on memory that was bound once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.errors import ExportError, OptionError
from gpu.host_engine import HostEngine
from gpu.memory import check_capacity, check_weights, machine_memory, too_large
from gpu.onnx.cached import DTYPE, cached_export
from gpu.onnx.codes import CODES
from gpu.onnx.data import places
from gpu.onnx.export import GRAPH_FILE, check_export
from gpu.onnx.graph import cache_names
from gpu.onnx.identity import FORMAT, Identity
from gpu.onnx.lora import no_adapter
from gpu.onnx.products import EMBEDDINGS
from gpu.onnx.runtime import VERSION, Binding, Session, bind, bind_cache, open_session
from gpu.onnx.together import Together
from gpu.onnx.together_graph import together_of
from gpu.processor import processor

_CHUNK = 256  # tokens of a prompt that go through the graph together
_TOGETHER = 8  # rows at most that take a decode step together
_NOT_YET = "none yet"


class OnnxEngine(HostEngine):
    """Runs a model of the Llama family in float32, as the graph that `gpu.onnx.export` makes of it.

    With `quantize`, products are of codes of 8 or 4 bits, and activations are rounded to 8 bits where they meet them.

    The graph takes the cache and gives it back in the same memory, and is told how many positions it looks at: a step
    costs what the row holds, not what it could hold. Prompts, and a row that decodes alone, go through it on the
    memory that was bound to the row. Rows that decode together go through a second graph of the same weights, in which
    each row's attention has the shapes that it has alone. The first such step is computed both ways: unless the bits
    are the same, rows decode one after the other from then on, and `facts` says so. So a row's bits never depend on who
    shares its batch.

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
        A folder that `phasewalk export` made of this checkpoint, instead of the one in the user's cache folder. If its
        graph takes adapters, none is what it gets: zeros of rank 1, which are bound once.

    Raises
    ------
    ExportError
        If the export cannot be made or kept, is damaged, or is one of another model.
    OptionError
        If there are no such codes, or the export is made for others, or for another dtype, capacity or number of rows.
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
    ) -> None:
        if quantize not in (None, *CODES):
            raise OptionError(f"quantize is {quantize!r}: expected {' or '.join(CODES)}")
        chunk = min(_CHUNK, capacity)

        def needs(rows: int, capacity: int) -> dict[str, int]:
            seen = capacity * (model.heads * chunk + 2 * model.heads * model.head_dim)
            return {
                "KV cache": 4 * rows * capacity * model.kv_numbers,
                "buffers": 4 * rows * (capacity + 2 * model.vocab),
                "working memory": 4 * (seen + chunk * (4 * model.hidden + 3 * model.intermediate)),
            }

        sizes = {place.name: place.size for place in places(model, DTYPE, quantize)}
        weights = sum(sizes.values())
        check_weights(weights)
        check_capacity(rows, capacity, needs, weights=weights)
        lora_rank = None
        if export is None:
            folder = cached_export(checkpoint, model, quantize)
        else:
            folder = Path(export)
            identity = check_export(folder, model, model_fingerprint(checkpoint.folder))
            _check_fits(identity, rows, capacity, quantize)
            lora_rank = identity.lora_rank
        try:
            super().__init__(model, rows=rows, capacity=capacity)
        except MemoryError:
            raise too_large(rows, capacity, needs, weights=weights) from None
        self._threads, self._chunk, self._quantize, self._lora_rank = threads or 1, chunk, quantize, lora_rank
        self._adapter = {} if lora_rank is None else no_adapter(model)
        table_is_head = model.tied_embeddings and quantize is None
        unread = 0 if table_is_head else sizes[EMBEDDINGS]  # but for the rows of the tokens
        self._weight_bytes = weights - unread
        checkpoint.announce("starting ONNX Runtime")
        session = open_session(folder / GRAPH_FILE, data=folder, threads=self._threads)
        self._session: Session | None = session
        self._folder = folder
        self._together: Together | None = None
        self._batches = _NOT_YET
        self._positions = np.arange(capacity, dtype=np.int64)  # [capacity], of which a step is given the first ones
        self._write_index = np.zeros(rows, np.int64)  # [rows]
        self._chunk_lengths = np.ones(rows, np.int32)  # [rows], tokens that are fed
        self._bindings = [self._bound(session, row) for row in range(rows)]

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, row by row and chunk by chunk, see `Engine.prefill`."""
        self._home.check()
        with self._lock:
            session, cache = self._opened(), self.kv_cache
            prompts = self._prompts(rows)
            for row, ids in zip(rows, prompts, strict=True):
                start = cache.length(row)
                for first in range(0, len(ids), self._chunk):
                    self._feed(session, row, start + first, ids[first : first + self._chunk])
            for row, ids in zip(rows, prompts, strict=True):
                cache.commit(row, len(ids))

    def decode(self, rows: Sequence[int]) -> None:
        """Feed one token a row, see `Engine.decode`."""
        self._home.check()
        with self._lock:
            session, cache = self._opened(), self.kv_cache
            self._check_rows(rows)
            for row in rows:
                cache.check_room(row, 1)
            for first in range(0, len(rows), _TOGETHER):
                self._step(session, rows[first : first + _TOGETHER])
            for row in rows:
                cache.commit(row, 1)

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads, if they read the weights together."""
        used = sum(self.kv_cache.length(row) for row in rows)
        return self._weight_bytes + used * self.kv_cache.bytes_per_position

    def environment(self) -> dict[str, Any]:
        """Tell what can change a bit, see `Engine.environment`."""
        return {
            "engine": self.name,
            "dtype": DTYPE,
            "quantize": self._quantize,
            **({} if self._quantize is None else {"activations": "int8"}),
            **({} if self._lora_rank is None else {"lora_rank": self._lora_rank}),
            "rows": self.kv_cache.rows,
            "capacity": self.kv_cache.capacity,
            "threads": self._threads,
            "graph": FORMAT,
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
            self._session = self._together = None
            self._bindings.clear()

    def _step(self, session: Session, rows: Sequence[int]) -> None:
        """Feed these rows' next tokens: together, if that gives the bits that each has alone."""
        starts = [self.kv_cache.length(row) for row in rows]
        if len(rows) > 1 and self._together is not None:
            self._together.feed(rows, starts)
            return
        for row, start in zip(rows, starts, strict=True):
            self._feed(session, row, start, self.buffers.next_token[row : row + 1])
        if len(rows) > 1 and self._batches == _NOT_YET:
            self._try_together(rows, starts)

    def _try_together(self, rows: Sequence[int], starts: Sequence[int]) -> None:
        """Compute a step once more, in company, and go on so if it gives the same bits; else leave it as it was."""
        together_at_most = min(_TOGETHER, self.kv_cache.rows)
        if 2 * self._weight_bytes > machine_memory():
            self._batches = "one row after the other: a second graph's weights would not fit into memory"
            return
        identity = Identity("", quantize=self._quantize, lora_rank=self._lora_rank)
        graph = together_of(self.model, identity, together_at_most).SerializeToString()
        try:
            session = open_session(graph, data=self._folder, threads=self._threads)
        except ExportError as error:
            self._batches = f"one row after the other: {error}"
            return
        together = Together(session, self.model, self.buffers, self._positions, self._adapter, together_at_most)
        alone = self._left(rows, starts)
        together.feed(rows, starts)
        in_company = self._left(rows, starts)
        if all(np.array_equal(a.view(np.int32), b.view(np.int32)) for a, b in zip(alone, in_company, strict=True)):
            self._together, self._batches = together, f"up to {together_at_most} rows together"
            return
        self._batches = "one row after the other: this build of ONNX Runtime rounds a row otherwise in company"
        for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
            self.buffers.logits[row] = alone[2 * index]
            self.buffers.kv_cache[:, :, row, :, start] = alone[2 * index + 1]

    def _left(self, rows: Sequence[int], starts: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Copy what a step left of each row: its logits, and the keys and values at its position."""
        left = []
        for row, start in zip(rows, starts, strict=True):
            left += [self.buffers.logits[row].copy(), self.buffers.kv_cache[:, :, row, :, start].copy()]
        return left

    def _feed(self, session: Session, row: int, start: int, ids: npt.NDArray[np.int32]) -> None:
        """Run tokens of a row through the graph, at positions from `start` on; its logits are those of the last one."""
        self._write_index[row], self._chunk_lengths[row] = start, len(ids)
        binding = self._bindings[row]
        bind(binding.bind_input, "input_ids", ids[None])
        bind(binding.bind_input, "positions", self._positions[: start + len(ids)])
        session.run_with_iobinding(binding)

    def _bound(self, session: Session, row: int) -> Binding:
        """Bind what a row never has elsewhere; past and present are the same memory."""
        binding = session.io_binding()
        here = slice(row, row + 1)
        bind(binding.bind_input, "write_index", self._write_index[here])
        bind(binding.bind_input, "input_lengths", self._chunk_lengths[here])
        bind(binding.bind_output, "logits", self.buffers.logits[here])
        for layer in range(self.model.layers):
            for name, cache in zip(cache_names(layer), self.buffers.kv_cache[layer], strict=True):
                bind_cache(binding, name, cache[here])
        for name, matrix in self._adapter.items():
            bind(binding.bind_input, name, matrix)
        return binding

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
