"""Weights of 8 bits as NumPy makes them, and how they lie on a device: the other side of common.cu."""

import numpy as np

from gpu.cuda.tiles import COLUMNS, ROWS

KINDS = ("int8", "fp8")
_MANTISSAS, _EXPONENTS = np.arange(8), np.arange(16)[:, None]
SIZES = {  # of the codes 0, 1, 2 and so on
    "int8": np.arange(128) / 64,
    "fp8": np.where(_EXPONENTS, 1 + _MANTISSAS / 8, _MANTISSAS / 4).reshape(-1)[:127]
    * 2.0 ** (np.repeat(_EXPONENTS, 8)[:127] - 7.0),
}


def quantised(matrix: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Round each row to codes times a scale, to the nearest and ties to even; rows with what is no number get NaN.

    Parameters
    ----------
    matrix : ndarray, [rows, columns] float32

    Returns
    -------
    ndarray, [rows, columns] float32
        What the codes are worth.
    ndarray, [rows] float32
        The scales.
    """
    sizes = SIZES[kind]
    most = np.abs(matrix).max(axis=1)
    scale = np.maximum(most / np.float32(sizes[-1]), np.float32(2.0**-126))
    scale[~np.isfinite(most)] = np.nan
    numbers = matrix / scale[:, None]
    size = np.abs(numbers).astype(np.float64)
    above = np.searchsorted(sizes, size).clip(1, len(sizes) - 1)
    below = above - 1
    down, up = size - sizes[below], sizes[above] - size
    nearest = np.where((down < up) | ((down == up) & (below % 2 == 0)), below, above)
    return np.copysign(sizes[nearest], numbers).astype(np.float32), scale


def untiled_codes(data: np.ndarray, rows: int, columns: int, kind: str) -> np.ndarray:
    """Give what the codes of tiles are worth, padding included: [units x 8, tiles x 32]."""
    words = data.view(np.uint32)
    signs, low, shifts = {  # of four codes in a word, each a sign and some of its bits here and there
        "int8": ((15, 31, 23, 7), (0, 16, 8, 24), ()),
        "fp8": ((15, 31, 11, 27), (12, 28, 0, 16), (7, 23, None, None)),
    }[kind]
    found = []
    for i in range(4):
        high = shifts[i] if shifts else None
        bits = words >> low[i] & (0x7F if high is None else 7)
        if high is not None:
            bits |= (words >> high & 15) << 3
        size = np.append(SIZES[kind], np.nan)[bits]
        found.append(np.where(words >> signs[i] & 1, -size, size))
    tiles = -(-columns // COLUMNS)
    numbers = np.stack(found, axis=-1).reshape(-1, tiles, ROWS, 4, 2, 4)  # units, tiles, rows, quads, halves, numbers
    return numbers.transpose(0, 2, 1, 4, 3, 5).reshape(-1, tiles * COLUMNS)
