"""bfloat16 on the host: NumPy has no such type, so its numbers travel as the upper halves of float32, in uint16."""

import numpy as np
import numpy.typing as npt

UInt16Array = npt.NDArray[np.uint16]
_NAN = np.uint16(0x7FC0)


def rounded(values: npt.NDArray[np.float32]) -> UInt16Array:
    """Round to the nearest, ties to even; NaN stays NaN, and what is too large becomes infinite."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = bits >> 16
    half &= 1
    half += 0x7FFF
    half += bits  # wraps for some NaN only
    half >>= 16
    found = half.astype(np.uint16)
    found[np.isnan(values)] = _NAN
    return found


def widened(halves: UInt16Array) -> npt.NDArray[np.float32]:
    """Give the float32 numbers of the same values."""
    bits = halves.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
