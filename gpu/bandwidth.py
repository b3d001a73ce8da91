"""Measures how fast this machine reads memory: the limit of every decode step."""

import time

import numpy as np

_BYTES = 256 << 20  # well above any last-level cache
_WIDTH = 4096  # floats of one dot product: long enough to stream, short enough that no BLAS splits it


def measure_read_bandwidth(threads: int = 1) -> float:
    """Read 256 MiB a few times, and say how fast the best pass was.

    Parameters
    ----------
    threads : int
        How many threads share the reading.

    Returns
    -------
    float
        Bytes per second.
    """
    from concurrent.futures import ThreadPoolExecutor  # only who measures need wait for it

    matrix = np.ones((_BYTES // 4 // _WIDTH, _WIDTH), np.float32)
    vector = np.ones(_WIDTH, np.float32)
    result = np.empty(len(matrix), np.float32)
    parts = list(zip(np.array_split(matrix, threads), np.array_split(result, threads), strict=True))

    def read(part: int) -> None:
        rows, out = parts[part]
        np.vecdot(rows, vector, out=out)

    def timed() -> float:
        start = time.perf_counter()
        list(pool.map(read, range(threads)))
        return time.perf_counter() - start

    with ThreadPoolExecutor(threads) as pool:
        return matrix.nbytes / min(timed() for _ in range(5))
