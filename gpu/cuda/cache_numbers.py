"""The numbers that a cache on the device is made of, and the float32 numbers that the host has for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpu.cuda import bfloat16

Numbers = npt.NDArray[Any]


class CacheNumbers(NamedTuple):
    """One kind of numbers."""

    dtype: np.dtype[Any]  # as NumPy has it, which has no bfloat16
    widened: Callable[[Numbers], Numbers]  # to float32; exact
    rounded: Callable[[Numbers], Numbers]  # from float32

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


CACHE_NUMBERS = {
    "bfloat16": CacheNumbers(np.dtype(np.uint16), bfloat16.widened, bfloat16.rounded),
    "float16": CacheNumbers(
        np.dtype(np.float16), lambda found: found.astype(np.float32), lambda given: given.astype(np.float16)
    ),
    "float32": CacheNumbers(np.dtype(np.float32), lambda found: found, lambda given: given),
}
