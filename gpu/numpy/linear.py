"""The matrix products of a decode step: one dot product for each output element of each row."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

_BLOCK_BYTES = 8 << 20  # of a matrix that several rows read while it is in the cache


class Linear:
    """Multiplies a few rows by a matrix at the speed of the memory.

    The bits of a row depend on the matrix and on that row alone, never on the rows that share the call.

    Parameters
    ----------
    threads : int
        1 computes on the calling thread (`np.vecdot`), which no busy neighbour can stall. More hands the products to
        the BLAS that NumPy brings, on as many threads as that library was started with (`OPENBLAS_NUM_THREADS`; all
        cores if unset): faster on an idle machine, much slower on a busy one.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def __call__(self, weight: Float32Array, x: Float32Array, out: Float32Array, columns: Float32Array) -> None:
        """Compute `out[row] = weight @ x[row]`.

        Parameters
        ----------
        weight : ndarray, [out_features, in_features] float32
        x : ndarray, [rows, in_features] float32
        out : ndarray, [rows, out_features] float32
        columns : ndarray, at least rows * out_features elements, float32
            Scratch.
        """
        self.scatter(weight, x, out, range(len(x)), columns)

    def scatter(
        self, weight: Float32Array, x: Float32Array, out: Float32Array, rows: Sequence[int], columns: Float32Array
    ) -> None:
        """Compute `out[rows[i]] = weight @ x[i]`."""
        if self._threads > 1:
            # A row of a threaded product may round differently by its place in the block, so one row alone is cut
            # into the same blocks.
            block = max(1, _BLOCK_BYTES // weight[0].nbytes)
            for start in range(0, len(weight), block):
                part = slice(start, start + block)
                for index, row in enumerate(rows):
                    np.dot(weight[part], x[index], out=out[row, part])
        elif len(x) == 1:
            np.vecdot(weight, x[0], out=out[rows[0]])
        else:
            # Each row of the matrix is read once, and stays in the cache for all rows of x.
            transposed = columns.reshape(-1)[: len(weight) * len(x)].reshape(len(weight), len(x))
            np.vecdot(weight[:, None], x, out=transposed)
            for index, row in enumerate(rows):
                out[row] = transposed[:, index]
