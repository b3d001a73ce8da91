"""The data of an export: where each of the checkpoint's tensors lies in the one file, and how it comes there."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import Checkpoint, expected_tensors
from gpu.errors import ExportError
from gpu.onnx.codes import CODES, SCALES
from gpu.onnx.products import EMBEDDINGS, is_linear, products
from gpu.printable import printable

DATA_FILE = "weights.bin"
_PAGE = 4096  # bytes; what lies at a page's start can be mapped
_PIECE = 4 * 2**20  # bytes of a matrix that are quantised between two reports
_FLOAT = 4  # bytes of a float32
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}


class Place(NamedTuple):
    """A tensor by its name in the checkpoint; a matrix of a linear layer lies as [in, out], as MatMul reads it.

    Quantised, it lies as its codes, and the scales behind them, alone or with others: see `gpu.onnx.products`.
    """

    name: str
    element_type: int  # of ONNX
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    size: int  # bytes


def places(model: ModelConfig, dtype: str, quantize: str | None = None) -> tuple[Place, ...]:
    """Give the place of every tensor, in the order in which they are used and written."""
    return tuple(_places(model, dtype, quantize))


def item_type(dtype: str) -> np.dtype[Any]:
    """Give NumPy's dtype for the numbers in the file; bfloat16 is that of ml_dtypes, which comes with onnx."""
    return _numpy_type(ELEMENT_TYPES[dtype])


def data_size(model: ModelConfig, dtype: str, quantize: str | None = None) -> int:
    """Count the bytes of the file."""
    last = places(model, dtype, quantize)[-1]
    return last.offset + last.size


def stored_size(model: ModelProto) -> int:
    """Count the bytes of the file that a graph names, and see that it names no other.

    Raises
    ------
    ExportError
        If it does, or gives a place that makes no sense.
    """
    end = 0
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            named = {entry.key: entry.value for entry in tensor.external_data}
            offset, length = named.get("offset", ""), named.get("length", "")
            if named.get("location") != DATA_FILE or not (_is_count(offset) and _is_count(length)):
                raise ExportError(f"{printable(tensor.name)} does not lie in {DATA_FILE}, where it must")
            end = max(end, int(offset) + int(length))
    return end


def write_data(path: Path, checkpoint: Checkpoint, model: ModelConfig, dtype: str, quantize: str | None = None) -> None:
    """Write all tensors, one after the other; no more than one of them is in memory, and it is on the disk at the end.

    Raises
    ------
    ExportError
        If a number is too large for the dtype.
    OSError
        If the disk is full, or cannot be written to.
    """
    offsets = {place.name: place.offset for place in places(model, dtype, quantize)}
    quantising = _Quantising(checkpoint, model, quantize)
    with path.open("xb") as file:
        for name in expected_tensors(model):
            for place, first, values in _stored(name, checkpoint.read(name), dtype, quantising):
                file.seek(offsets[place] + first * (values.nbytes // len(values)))
                file.write(values.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _places(model: ModelConfig, dtype: str, quantize: str | None) -> Iterator[Place]:
    end = 0
    for name, element_type, shape in _tensors(model, ELEMENT_TYPES[dtype], quantize):
        offset, size = -(-end // _PAGE) * _PAGE, math.prod(shape) * _numpy_type(element_type).itemsize
        yield Place(name, element_type, shape, offset, size)
        end = offset + size


def _is_count(text: str) -> bool:
    return len(text) < 20 and text.isascii() and text.isdecimal()


def _tensors(model: ModelConfig, plain: int, quantize: str | None) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Give name, type and shape of what is stored; `_stored` gives the numbers."""
    quantised = {} if quantize is None else products(model)
    for name, shape in expected_tensors(model).items():
        product = quantised.get(name)
        if product is None or name == EMBEDDINGS:
            yield name, plain, shape[::-1] if is_linear(name) else shape
        if product is not None and quantize is not None and name == next(iter(product.parts)):
            codes, scales = CODES[quantize].shapes(*product.shape)
            yield product.name, TensorProto.UINT8, codes
            yield product.name + SCALES, TensorProto.FLOAT, scales


class _Quantising:
    """Quantises one matrix after the other, and reports how far it is: that takes longer than to read them."""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig, quantize: str | None) -> None:
        self.products = {} if quantize is None else products(model)
        self._checkpoint, self._codes, self._done = checkpoint, CODES.get(quantize or ""), 0
        self._total = sum(_FLOAT * math.prod(expected_tensors(model)[name]) for name in self.products)

    def of(self, matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Give the codes and scales of a matrix, some rows after the others."""
        assert self._codes is not None, "something is quantised"
        rows, columns = matrix.shape
        code_shape, scale_shape = self._codes.shapes(rows, columns)
        codes, scales = np.empty(code_shape, np.uint8), np.empty(scale_shape, np.float32)
        step = max(1, _PIECE // (_FLOAT * columns))
        for first in range(0, rows, step):
            piece = slice(first, first + step)
            codes[piece], scales[piece] = self._codes.of(matrix[piece])
            self._done += matrix[piece].nbytes
            self._checkpoint.announce("quantising weights", self._done, self._total)
        return codes, scales


def _stored(
    name: str, values: npt.NDArray[np.float32], dtype: str, quantising: _Quantising
) -> Iterator[tuple[str, int, npt.NDArray[Any]]]:
    """Give the place of what becomes of a tensor, the row of it that it begins at, and its numbers."""
    product = quantising.products.get(name)
    if product is None or name == EMBEDDINGS:
        yield name, 0, _rounded(name, values, dtype)
    if product is not None:
        codes, scales = quantising.of(values)
        yield product.name, product.first(name), codes
        yield product.name + SCALES, product.first(name), scales


def _numpy_type(element_type: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(element_type))


def _rounded(name: str, values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray((values.T if is_linear(name) else values).astype(item_type(dtype)))
    if dtype == "float16" and np.isinf(rounded).sum() > np.isinf(values).sum():
        raise ExportError(f"{name} holds numbers above 65504, the largest of float16: export in bfloat16 or float32")
    return rounded
