"""The matrix products of a decode step: a row's bits are the same alone and in any company."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import cache

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.numpy.blas import Blas

Float32Array = npt.NDArray[np.float32]

_BLOCK_BYTES = 8 << 20  # of a matrix that several rows read while it is in the cache
_SHARE_BYTES = 512 << 10  # of a matrix that a thread takes at once; less is not worth waking another
_GROUP_BYTES = 512 << 10  # of rows that stay in the cache of one core
_KERNEL = 4  # vectors that the kernels of a BLAS take at once: a rest of fewer is summed in another order
_GROUPS = (32, 16, 8, 4)  # rows that go together; the only shapes there are, so that each can be checked


class Linear:
    """Multiplies a few rows by a matrix at the speed of the memory.

    The bits of a row depend on the matrix and on that row alone, never on the rows that share the call.

    On the calling thread each output element is one dot product (`np.vecdot`), which no busy neighbour can stall.

    By the BLAS, a row alone is a matrix-vector product on its threads: fast on an idle machine, much slower
    on a busy one. Rows together are cut into groups of 32, 16, 8 and 4, the last one filled up with zeros, and the
    BLAS multiplies each group, as the matrix, by one row of the weights after the other, as the vector. So a weight is
    read once for all rows, and each sum is that of the row alone: the same kernel adds the same products in the same
    order, whichever factor is called the matrix. As many threads as the BLAS has take stretches of the weights as
    they get to it. That the sums are the same is checked at load (`check`), and where they are not, rows are
    multiplied one after the other.

    Parameters
    ----------
    model : ModelConfig
        Whose matrices are multiplied.
    blas : Blas
        What multiplies.
    rows : int
        Rows at most.
    by_blas : bool
        On as many threads as the BLAS has, instead of on the calling one.
    """

    def __init__(self, model: ModelConfig, blas: Blas, *, rows: int, by_blas: bool) -> None:
        self.by_blas = by_blas
        self.together = by_blas and rows >= _KERNEL
        self._blas = blas
        self._places = _up(rows, _KERNEL)
        self._columns = np.empty(self._places * _widest_out(model), np.float32)
        self._filled = np.empty(self._places * _widest_in(model), np.float32)
        self._pool = ThreadPoolExecutor(max(1, blas.threads - 1), "linear")  # starts none before it has work
        self._helping: list[Future[None]] = []

    @staticmethod
    def numbers(model: ModelConfig, rows: int) -> int:
        """How many numbers it works in."""
        return _up(rows, _KERNEL) * (_widest_out(model) + _widest_in(model))

    def goes_together(self, rows: int) -> bool:
        """Whether so many rows are multiplied together, which wants the BLAS on one thread."""
        return self.together and rows >= _KERNEL

    def __call__(self, weight: Float32Array, x: Float32Array, out: Float32Array) -> None:
        """Compute `out[row] = weight @ x[row]`.

        Parameters
        ----------
        weight : ndarray, [out_features, in_features] float32
        x : ndarray, [rows, in_features] float32
        out : ndarray, [rows, out_features] float32
        """
        self.scatter(weight, x, out, range(len(x)))

    def scatter(self, weight: Float32Array, x: Float32Array, out: Float32Array, rows: Sequence[int]) -> None:
        """Compute `out[rows[i]] = weight @ x[i]`."""
        if self.goes_together(len(x)):
            self._multiply_together(weight, x, out, rows)
        elif self.by_blas:
            # A row of the matrix may round differently by its place in the block, so the blocks are always the same.
            for part in self._blocks(weight):
                for index, row in enumerate(rows):
                    np.dot(weight[part], x[index], out=out[row, part])
        elif len(x) == 1:
            np.vecdot(weight, x[0], out=out[rows[0]])
        else:
            # Each row of the matrix is read once, and stays in the cache for all rows of x.
            transposed = self._columns[: len(weight) * len(x)].reshape(len(weight), len(x))
            np.vecdot(weight[:, None], x, out=transposed)
            for index, row in enumerate(rows):
                out[row] = transposed[:, index]

    def check(self, matrices: Sequence[Float32Array]) -> None:
        """Multiply rows together from now on only if each has the bits that it has alone, with these matrices."""
        self.together = self.together and all(self._keeps_bits(weight) for weight in matrices)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown()

    def _keeps_bits(self, weight: Float32Array) -> bool:
        """Compare each shape that there is, of blocks and of groups, on random rows."""
        features, blocks = weight.shape[1], {len(weight[part]): weight[part] for part in self._blocks(weight)}
        groups = [group for group in _groups_of(features) if group <= self._places]
        x = np.random.default_rng(0).standard_normal((groups[0], features), np.float32)
        for block in blocks.values():
            alone, together = np.empty((2, len(x), len(block)), np.float32)
            with self._blas.at_work(one_thread=False):
                for row, of_row in zip(x, alone, strict=True):
                    np.dot(block, row, out=of_row)
            with self._blas.at_work(one_thread=True):
                for group in groups:
                    self._multiply_together(block, x[:group], together, range(group))
                    if together[:group].tobytes() != alone[:group].tobytes():
                        return False
        return True

    def _multiply_together(self, weight: Float32Array, x: Float32Array, out: Float32Array, rows: Sequence[int]) -> None:
        """Multiply four rows or more, on all threads if there is enough to do."""
        self._wait()
        count, features = x.shape
        places = _up(count, _KERNEL)
        filled = self._filled[: places * features].reshape(places, features)
        filled[:count], filled[count:] = x, 0
        columns = self._columns[: places * len(weight)].reshape(len(weight), places)
        groups, stretch = _groups(places, features), max(1, _SHARE_BYTES // weight[0].nbytes)
        stretches = [slice(start, start + stretch) for start in range(0, len(weight), stretch)]
        left, targets = iter(stretches), list(rows)

        def multiply() -> None:
            for part in left:
                for group in groups:
                    np.matvec(filled[group], weight[part], out=columns[part, group])
                out[targets, part] = columns[part, :count].T

        for _ in range(min(self._blas.threads, len(stretches)) - 1):
            self._helping.append(self._pool.submit(copy_context().run, multiply))
        try:
            multiply()
        finally:
            self._wait()

    def _wait(self) -> None:
        """Wait for the helpers that are at work, also those of a product that was interrupted twice."""
        started = [helper for helper in self._helping if not helper.cancel()]
        wait(started)
        self._helping.clear()
        for helper in started:
            helper.result()

    def _blocks(self, weight: Float32Array) -> Iterator[slice]:
        """Cut a matrix so that each thread of the BLAS has fours; the last block reaches back to have them too."""
        whole = _KERNEL * self._blas.threads
        most = max(1, _BLOCK_BYTES // (weight[0].nbytes * whole)) * whole
        end = len(weight) // whole * whole
        for start in range(0, end, most):
            yield slice(start, min(start + most, end))
        if end < len(weight):
            yield slice(max(0, len(weight) - whole), len(weight))


@cache
def _groups(rows: int, features: int) -> tuple[slice, ...]:
    """Cut rows, a multiple of four, into the largest groups that there are."""
    groups, start = [], 0
    for size in _groups_of(features):
        while start + size <= rows:
            groups.append(slice(start, start + size))
            start += size
    return tuple(groups)


def _groups_of(features: int) -> list[int]:
    """Give the sizes of the groups of rows with so many features."""
    return [size for size in _GROUPS if size == _KERNEL or 4 * size * features <= _GROUP_BYTES]


def _up(count: int, whole: int) -> int:
    return -(-count // whole) * whole


def _widest_out(model: ModelConfig) -> int:
    return max(model.vocab, 2 * model.intermediate, (model.heads + 2 * model.kv_heads) * model.head_dim, model.hidden)


def _widest_in(model: ModelConfig) -> int:
    return max(model.hidden, model.heads * model.head_dim, model.intermediate)
