"""Masking logits by a bit for each token, on the host."""

import numpy as np
import numpy.typing as npt

_MINUS_INFINITY = np.uint32(0xFF800000)


def mask_logits(logits: npt.NDArray[np.float32], allowed: npt.NDArray[np.uint32]) -> None:
    """Set logits to -inf in place but for the tokens whose bit is set, see `gpu.engine.Engine.mask_logits`.

    Parameters
    ----------
    logits : ndarray, [vocab] float32
    allowed : ndarray, [ceil(vocab / 32)] uint32
    """
    in_order = allowed.astype("<u4", copy=False).view(np.uint8)
    # By bits, as that takes 80 us for 128,000 tokens whatever the mask; np.copyto(where=) takes 70 to 700.
    dropped = np.unpackbits(in_order, count=len(logits), bitorder="little").astype(np.uint32)
    dropped -= np.uint32(1)  # all ones where a token is dropped
    bits = logits.view(np.uint32)
    bits |= dropped
    dropped &= ~_MINUS_INFINITY
    np.invert(dropped, out=dropped)
    bits &= dropped
