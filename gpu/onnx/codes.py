"""Matrices as codes of 8 or 4 bits, made by ONNX Runtime's own quantiser for its own operator, `MatMulNBits`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DOMAIN = "com.microsoft"
OPERATOR = "MatMulNBits"
SCALES = ".scales"  # behind the name of the codes
_ACTIVATIONS_OF_8_BITS = 4  # its level of accuracy at which products are of whole numbers


@dataclass(slots=True, frozen=True)
class Codes:
    """How a matrix is quantised."""

    bits: int  # of a code
    block: int  # codes along a row of the matrix that share a scale
    in_company: bool  # the operator rounds a lone token otherwise than one of several, so a lone one is given company

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the shapes of a matrix's codes, in bytes, and of its scales."""
        blocks = -(-columns // self.block)
        return (rows, blocks, self.block * self.bits // 8), (rows, blocks)

    def attributes(self, rows: int, columns: int) -> dict[str, int]:
        """Give the attributes of the operator that multiplies by such a matrix."""
        return {
            "K": columns, "N": rows, "bits": self.bits, "block_size": self.block,
            "accuracy_level": _ACTIVATIONS_OF_8_BITS,
        }  # fmt: skip

    def of(self, matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Quantise a matrix [out, in]: its codes, and their scales; beside these, a transposed copy is in memory."""
        # These are the functions that onnxruntime.quantization calls for each matrix of a graph, which it holds whole.
        from onnxruntime.capi import _pybind_state as native

        quantise: Any = {8: native.quantize_matmul_8bits, 4: native.quantize_matmul_4bits}[self.bits]
        rows, columns = matrix.shape
        code_shape, scale_shape = self.shapes(rows, columns)
        codes, scales = np.zeros(code_shape, np.uint8), np.zeros(scale_shape, np.float32)
        midpoints = np.zeros((rows, -(-scale_shape[1] * self.bits // 8)), np.uint8)  # in the middle: codes are signed
        quantise(codes, np.ascontiguousarray(matrix.T), scales, midpoints, self.block, rows, columns, True)
        return codes, scales


CODES = {"int8": Codes(8, block=64, in_company=False), "int4": Codes(4, block=32, in_company=True)}
