"""What quantised weights of the ONNX engine come to."""

import numpy as np

from gpu.onnx.codes import CODES


def dequantised(kind: str, codes: np.ndarray, scales: np.ndarray, columns: int) -> np.ndarray:
    """The numbers that codes stand for: the lower half of a byte is the first code, and the middle one is zero."""
    if kind == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    whole = codes.astype(np.float32) - 2 ** (CODES[kind].bits - 1)
    return (whole * scales[:, :, None]).reshape(len(codes), -1)[:, :columns]
