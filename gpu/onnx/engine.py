"""The ONNX engine: the exported graph, run by ONNX Runtime on memory that was bound once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.errors import ExportError, OptionError
from gpu.host_engine import HostEngine
from gpu.memory import check_capacity, check_weights, too_large
from gpu.onnx.cached import DTYPE, cached_export
from gpu.onnx.export import GRAPH_FILE, check_export
from gpu.onnx.graph import cache_names
from gpu.onnx.identity import FORMAT, Identity
from gpu.printable import printable
from gpu.processor import processor

_CHUNK = 256  # tokens of a prompt that go through the graph together


class OnnxEngine(HostEngine):
    """Runs a model of the Llama family in float32, as the graph that `gpu.onnx.export` makes of it.

    The graph takes the cache and gives it back in the same memory, and is told how many positions it looks at: a step
    costs what the row holds, not what it could hold. Rows go through it one after the other, each on the memory that
    was bound to it, so that a row's bits do not depend on who shares its batch.

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
    export : str or Path, optional
        A folder that `phasewalk export` made of this checkpoint, instead of the one in the user's cache folder.

    Raises
    ------
    ExportError
        If the export cannot be made or kept, is damaged, or is one of another model.
    OptionError
        If the export is made for another dtype, capacity or number of rows.
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
        export: str | Path | None = None,
    ) -> None:
        chunk = min(_CHUNK, capacity)

        def needs(rows: int, capacity: int) -> dict[str, int]:
            seen = capacity * (model.heads * chunk + 2 * model.heads * model.head_dim)
            return {
                "KV cache": 4 * rows * capacity * model.kv_numbers,
                "buffers": 4 * rows * (capacity + 2 * model.vocab),
                "working memory": 4 * (seen + chunk * (4 * model.hidden + 3 * model.intermediate)),
            }

        weights = 4 * checkpoint.numbers
        check_weights(weights)
        check_capacity(rows, capacity, needs, weights=weights)
        if export is None:
            folder = cached_export(checkpoint, model)
        else:
            folder = Path(export)
            _check_fits(check_export(folder, model, model_fingerprint(checkpoint.folder)), rows, capacity)
        try:
            super().__init__(model, rows=rows, capacity=capacity)
        except MemoryError:
            raise too_large(rows, capacity, needs, weights=weights) from None
        self._threads, self._chunk = threads or 1, chunk
        unread = 0 if model.tied_embeddings else 4 * model.vocab * model.hidden  # but for the rows of the tokens
        self._weight_bytes = weights - unread
        checkpoint.announce("starting ONNX Runtime")
        session = _session(folder / GRAPH_FILE, self._threads)
        self._session: _Session | None = session
        self._positions = np.arange(capacity, dtype=np.int64)  # [capacity], of which a step is given the first ones
        self._write_index = np.zeros(rows, np.int64)  # [rows]
        self._chunk_lengths = np.ones(rows, np.int32)  # [rows], tokens that are fed
        self._bindings = [self._bound(session, row) for row in range(rows)]

    def prefill(self, rows: Sequence[int]) -> None:
        """Feed the prompts, row by row and chunk by chunk, see `Engine.prefill`."""
        self._home.check()
        with self._lock:
            session, buffers, cache = self._opened(), self.buffers, self.kv_cache
            self._check_rows(rows)
            counts = [int(buffers.input_lengths[row]) for row in rows]
            for row, count in zip(rows, counts, strict=True):
                if not count:
                    raise ValueError(f"row {row} has no prompt to feed: write one first")
                cache.check_room(row, count)
            for row, count in zip(rows, counts, strict=True):
                ids, start = buffers.input_ids[row, :count], cache.length(row)
                for first in range(0, count, self._chunk):
                    self._feed(session, row, start + first, ids[first : first + self._chunk])
            for row, count in zip(rows, counts, strict=True):
                cache.commit(row, count)

    def decode(self, rows: Sequence[int]) -> None:
        """Feed one token a row, see `Engine.decode`."""
        self._home.check()
        with self._lock:
            session, cache = self._opened(), self.kv_cache
            self._check_rows(rows)
            for row in rows:
                cache.check_room(row, 1)
            for row in rows:
                self._feed(session, row, cache.length(row), self.buffers.next_token[row : row + 1])
            for row in rows:
                cache.commit(row, 1)

    def bytes_per_token(self, rows: Sequence[int]) -> int:
        """Count the bytes that one decode step of these rows reads; every row reads the weights, but once counts."""
        used = sum(self.kv_cache.length(row) for row in rows)
        return self._weight_bytes + used * self.kv_cache.bytes_per_position

    def environment(self) -> dict[str, Any]:
        """Tell what can change a bit, see `Engine.environment`."""
        return {
            "engine": self.name,
            "dtype": DTYPE,
            "rows": self.kv_cache.rows,
            "capacity": self.kv_cache.capacity,
            "threads": self._threads,
            "graph": FORMAT,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            **processor(),
        }

    def close(self) -> None:
        """Give the weights back; prefill and decode are refused from now on."""
        if self._home.left:  # the lock may be held for ever, and nobody here can compute
            return
        with self._lock:
            self._session = None
            self._bindings.clear()

    def _feed(self, session: "_Session", row: int, start: int, ids: npt.NDArray[np.int32]) -> None:
        """Run tokens of a row through the graph, at positions from `start` on; its logits are those of the last one."""
        self._write_index[row], self._chunk_lengths[row] = start, len(ids)
        binding = self._bindings[row]
        _bind(binding.bind_input, "input_ids", ids[None])
        _bind(binding.bind_input, "positions", self._positions[: start + len(ids)])
        session.run_with_iobinding(binding)

    def _bound(self, session: "_Session", row: int) -> "_Binding":
        """Bind what a row never has elsewhere; past and present are the same memory."""
        binding = session.io_binding()
        here = slice(row, row + 1)
        _bind(binding.bind_input, "write_index", self._write_index[here])
        _bind(binding.bind_input, "input_lengths", self._chunk_lengths[here])
        _bind(binding.bind_output, "logits", self.buffers.logits[here])
        for layer in range(self.model.layers):
            for name, cache in zip(cache_names(layer), self.buffers.kv_cache[layer], strict=True):
                _bind(binding.bind_input, name, cache[here])
                _bind(binding.bind_output, f"present.{name}", cache[here])
        return binding

    def _opened(self) -> "_Session":
        if self._session is None:
            raise RuntimeError("the engine is closed: load it again")
        return self._session


class _Bind(Protocol):
    def __call__(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...


class _Binding(Protocol):
    """What is used of `onnxruntime.IOBinding`, which has no types."""

    bind_input: _Bind
    bind_output: _Bind


class _Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`, which has no types."""

    def io_binding(self) -> _Binding: ...

    def run_with_iobinding(self, iobinding: _Binding) -> None: ...


def _bind(bind: _Bind, name: str, array: npt.NDArray[Any]) -> None:
    """Bind an array's memory, which must outlive the binding; nothing is copied."""
    assert array.flags.c_contiguous
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _session(path: Path, threads: int) -> _Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # one would be kept for every length of a row
    try:
        session: _Session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of kinds that ONNX Runtime keeps to itself
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {printable(path)}: {printable(error, 400)}"
        ) from None
    return session


def _check_fits(identity: Identity, rows: int, capacity: int) -> None:
    """Refuse an export that was made for other rows."""
    if identity.dtype != DTYPE:
        raise OptionError(f"the export is in {identity.dtype}, the engine onnx computes in {DTYPE}: export in {DTYPE}")
    if identity.capacity not in (None, capacity):
        raise OptionError(
            f"the export has a capacity of {identity.capacity}: load it with capacity={identity.capacity}"
        )
    if identity.max_batch is not None and rows > identity.max_batch:
        raise OptionError(f"the export is for {identity.max_batch} rows: load it with max_batch={identity.max_batch}")
