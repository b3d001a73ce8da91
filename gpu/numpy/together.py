"""The matrix products of a decode step by blocks of rows, of fixed shapes: a row has the same bits in any company."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from gpu.errors import OptionError

Float32Array = npt.NDArray[np.float32]

# Rows of a block, as they are tried. The BLAS copies a piece for each block, so large ones are better for many rows,
# small ones for a row without company.
_BLOCKS = (16, 8, 24, 32, 12, 4)
_PIECE_BYTES = 2 << 20  # of a matrix that all blocks of rows read while it is in the cache
_TILE = 48  # features of which a piece is a multiple: tiles of every kernel of OpenBLAS fit


class Together:
    """Multiplies rows by a matrix in blocks, on threads of its own.

    Each product is that of a piece of the matrix and of a whole block, which is filled up with zeros. So its shape, and
    with it the order in which the BLAS adds, depends on the matrix alone, not on the number of rows or threads. That
    the place in a block does not matter either is tried out here, for each shape, with the BLAS that is at hand.

    All calls want the BLAS on one thread.

    Parameters
    ----------
    shapes : sequence of (int, int)
        [out_features, in_features] of every matrix that will be multiplied by.
    rows : int
        That come at most.
    threads : int
        That share the pieces of a matrix; the calling thread is one of them.

    Raises
    ------
    OptionError
        If with this BLAS a row's place matters in a block of any size that was tried.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, rows: int, threads: int) -> None:
        self.threads = threads
        self._pieces = {shape: _pieces(*shape) for shape in shapes}
        lengths = {(part.stop - part.start, shape[1]) for shape, parts in self._pieces.items() for part in parts}
        fitting = (block for block in _BLOCKS if all(_any_place_will_do(block, *piece) for piece in lengths))
        if (block := next(fitting, None)) is None:
            raise OptionError(
                "the engine numpy cannot decode together here: with this BLAS a row's bits depend on its place among "
                "the others: leave it out, or say alone"
            )
        self.block = block
        self._x = np.empty(-(-rows // block) * block * max(width for _, width in shapes), np.float32)
        self._results = np.empty((threads, max(length for length, _ in lengths) * block), np.float32)
        self._helpers: ThreadPoolExecutor | None = None
        self._interrupted = False  # in a call, or since one was: what it left to the threads may not be done
        self._start_helpers()

    def __call__(self, weight: Float32Array, x: Float32Array, out: Float32Array, columns: Float32Array) -> None:
        """Compute `out[row] = weight @ x[row]`; see `Linear`. `columns` is not used."""
        if self._interrupted:
            self.close()
            self._start_helpers()
        self._interrupted = True
        rows, width = x.shape
        blocks = -(-rows // self.block)
        padded = self._x[: blocks * self.block * width].reshape(blocks, self.block, width)
        flat = padded.reshape(-1, width)
        flat[:rows], flat[rows:] = x, 0
        todo = deque(self._pieces[weight.shape])
        helping = []
        if self._helpers is not None:
            numbers = range(1, min(self.threads, len(todo)))
            helping = [self._helpers.submit(self._multiply, number, todo, weight, padded, out) for number in numbers]
        self._multiply(0, todo, weight, padded, out)
        for helper in helping:
            helper.result()
        self._interrupted = False

    def scatter(
        self, weight: Float32Array, x: Float32Array, out: Float32Array, rows: Sequence[int], columns: Float32Array
    ) -> None:
        """Compute `out[rows[i]] = weight @ x[i]`; see `Linear`."""
        together = columns.reshape(-1)[: len(x) * len(weight)].reshape(len(x), len(weight))
        self(weight, x, together, columns)
        for index, row in enumerate(rows):
            out[row] = together[index]

    def close(self) -> None:
        """End the threads, once they have done what they were given."""
        if self._helpers is not None:
            self._helpers.shutdown()

    def _start_helpers(self) -> None:
        if self.threads > 1:
            self._helpers = ThreadPoolExecutor(self.threads - 1, "phasewalk-decode")

    def _multiply(
        self, number: int, todo: deque[slice], weight: Float32Array, padded: Float32Array, out: Float32Array
    ) -> None:
        """Take pieces as long as there are any."""
        rows, block = len(out), self.block
        while todo:
            try:
                part = todo.popleft()
            except IndexError:  # another thread was faster
                return
            count = part.stop - part.start
            result = self._results[number, : count * block].reshape(count, block)
            for first, filled in zip(range(0, rows, block), padded, strict=True):
                np.matmul(weight[part], filled.T, out=result)
                out[first : first + block, part] = result.T[: rows - first]


def usual_threads() -> int:
    """Two, if this process has as many processors."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, mine)


def _pieces(features: int, width: int) -> list[slice]:
    """Cut a matrix of so many features into pieces of about equal size: one, or as many for each of two threads."""
    nbytes = 4 * features * width
    count = 1 if nbytes < _PIECE_BYTES else 2 * max(1, round(nbytes / _PIECE_BYTES / 2))
    size = -(-features // count // _TILE) * _TILE
    return [slice(start, min(start + size, features)) for start in range(0, features, size)]


def _any_place_will_do(block: int, features: int, width: int) -> bool:
    """Whether rows have the same bits at each place of a block, when each has been at each."""
    random = np.random.default_rng(0)
    piece, rows = random.random((features, width), np.float32) - 0.5, random.random((block, width), np.float32) - 0.5
    results = np.empty((block, features, block), np.float32)
    for shift in range(block):
        np.matmul(piece, np.roll(rows, shift, axis=0).T, out=results[shift])
        results[shift] = np.roll(results[shift], -shift, axis=1)
    return bool((results == results[0]).all())
