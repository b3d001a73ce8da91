"""Decode steps of several rows together, through a graph that reads the weights once for all of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gpu.buffers import Buffers
from gpu.checkpoint.config import ModelConfig
from gpu.onnx.graph import cache_names
from gpu.onnx.runtime import Session, bind, bind_cache

_UNKNOWN = -1


class Together:
    """A graph of a fixed number of places, each of which a row takes for a step; what no row takes computes nothing.

    Parameters
    ----------
    session : Session
        Of the graph that `together_of` made for so many places.
    model : ModelConfig
        The shape of the model.
    buffers : Buffers
        Where the rows' tokens, caches and logits lie.
    positions : ndarray, [capacity] int64
        0, 1, ... of which a place is given as many as its row looks at.
    adapter : mapping of str to ndarray
        The matrices of the adapter that all places have, by the names of their inputs; none if the graph takes none.
    places : int
        Rows that can take a step at once.
    """

    def __init__(
        self,
        session: Session,
        model: ModelConfig,
        buffers: Buffers,
        positions: npt.NDArray[np.int64],
        adapter: Mapping[str, npt.NDArray[np.float32]],
        places: int,
    ) -> None:
        self.places = places
        self._session, self._model, self._buffers, self._positions = session, model, buffers, positions
        self._ids = np.zeros((places, 1), np.int32)  # [places, 1] int32
        self._write_index = np.zeros(places, np.int64)  # [places] int64
        self._logits = np.zeros((places, model.vocab), np.float32)  # [places, vocab] float32
        self._nobody = np.zeros_like(buffers.kv_cache[0, 0, :1])  # [1, kv_heads, capacity, head_dim], of free places
        self._rows: list[int | None] = [_UNKNOWN] * places  # whose cache is bound to a place; None: that of nobody
        self._binding = session.io_binding()
        bind(self._binding.bind_input, "input_ids", self._ids)
        bind(self._binding.bind_input, "write_index", self._write_index)
        bind(self._binding.bind_output, "logits", self._logits)
        for name, matrix in adapter.items():
            for place in range(places):
                bind(self._binding.bind_input, f"{name}.{place}", matrix)
        self._seat([])

    def feed(self, rows: Sequence[int], starts: Sequence[int]) -> None:
        """Feed each row's next token at its position, and leave its logits; no more rows than there are places."""
        count, buffers = len(rows), self._buffers
        self._seat(rows)
        for place, start in enumerate((*starts, *[0] * (self.places - count))):
            self._write_index[place] = start
            bind(self._binding.bind_input, f"positions.{place}", self._positions[: start + 1])
        self._ids[:count, 0] = buffers.next_token[list(rows)]
        self._session.run_with_iobinding(self._binding)
        buffers.logits[list(rows)] = self._logits[:count]

    def _seat(self, rows: Sequence[int]) -> None:
        """Bind the rows' caches to the first places."""
        for place, row in enumerate((*rows, *[None] * (self.places - len(rows)))):
            if self._rows[place] == row:
                continue
            self._rows[place] = _UNKNOWN  # as an interrupt may come between two names
            for layer in range(self._model.layers):
                for kind, name in enumerate(cache_names(layer)):
                    cache = self._nobody if row is None else self._buffers.kv_cache[layer, kind, row : row + 1]
                    bind_cache(self._binding, f"{name}.{place}", cache)
            self._rows[place] = row
