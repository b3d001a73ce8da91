"""One stretch of device memory for many arrays: planned first, so that its size is known before it is asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gpu.buffers import BufferInfo
from gpu.cuda.device import Device, Lines

_ALIGNMENT = 256
_ITEM = {"bfloat16": 2}


@dataclass(slots=True, frozen=True)
class Array:
    """The shape of an array; bfloat16 is a dtype that NumPy has not."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def itemsize(self) -> int:
        return _ITEM[self.dtype] if self.dtype in _ITEM else np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


Plan = Mapping[str, Array]


def size_of(plan: Plan) -> int:
    """Count the bytes that an arena of this plan takes."""
    return sum(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in plan.values())


class Arena:
    """Arrays in device memory, all zero at first; their addresses never change."""

    def __init__(self, device: Device, plan: Plan) -> None:
        self._plan = plan
        address = device.allocate(max(1, size_of(plan)))
        self._addresses: dict[str, int] = {}
        for name, array in plan.items():
            self._addresses[name] = address
            address += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def at(self, name: str, *index: int) -> int:
        """Give the address of an array, or of a part of it: its first indices are given."""
        array = self._plan[name]
        address, step = self._addresses[name], array.nbytes
        for number, length in zip(index, array.shape, strict=False):
            step //= length
            address += number * step
        return address

    def optional(self, name: str) -> int:
        """Give the address of an array, or the null pointer if there is none of that name."""
        return self._addresses.get(name, 0)

    def lines(self, name: str, *index: int) -> Lines:
        """Give the memory of an array, or of a part of it."""
        array = self._plan[name]
        return Lines(self.at(name, *index), array.nbytes // math.prod(array.shape[: len(index)]))

    def infos(self) -> tuple[BufferInfo, ...]:
        """Tell where every array lies."""
        return tuple(
            BufferInfo(name, array.shape, array.dtype, self._addresses[name])
            for name, array in self._plan.items()
            if array.nbytes
        )
