"""How a matrix lies in the device's memory: tiles of 8 rows and 32 columns, their chunks turned; see common.cu."""

import numpy as np
import numpy.typing as npt

from gpu.cuda.bfloat16 import UInt16Array, rounded, widened

ROWS, COLUMNS = 8, 32
_CHUNK = 8  # numbers of a row that stay together
_TURNED = np.arange(COLUMNS // _CHUNK) ^ np.arange(ROWS)[:, None] // 2  # [8, 4]: which chunk lies where


def up(count: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-count // multiple) * multiple


def tiled_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Give [units, tiles, 8, 32]; units come in pairs, and what pads the matrix is zero."""
    return up(rows, 2 * ROWS) // ROWS, up(columns, COLUMNS) // COLUMNS, ROWS, COLUMNS


def tiled(matrix: npt.NDArray[np.float32]) -> UInt16Array:
    """Round a matrix to bfloat16 and lay it out in tiles.

    Parameters
    ----------
    matrix : ndarray, [rows, columns] float32

    Returns
    -------
    ndarray, [units, tiles, 8, 32] uint16
    """
    rows, columns = matrix.shape
    units, tiles, _, _ = tiled_shape(rows, columns)
    padded = np.zeros((units * ROWS, tiles * COLUMNS), np.uint16)
    padded[:rows, :columns] = rounded(matrix)
    return _turned(padded.reshape(units, ROWS, tiles, COLUMNS).transpose(0, 2, 1, 3))


def untiled(tiles: UInt16Array, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Give the matrix that was laid out in these tiles."""
    units, count, _, _ = tiles.shape
    padded = _turned(tiles).transpose(0, 2, 1, 3).reshape(units * ROWS, count * COLUMNS)
    return widened(np.ascontiguousarray(padded[:rows, :columns]))


def _turned(tiles: UInt16Array) -> UInt16Array:
    """Put the chunks of each row where they lie, or back: it is its own inverse."""
    chunks = tiles.reshape(*tiles.shape[:3], COLUMNS // _CHUNK, _CHUNK)
    return chunks[:, :, np.arange(ROWS)[:, None], _TURNED].reshape(tiles.shape)
