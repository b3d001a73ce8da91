"""Checks a loaded engine on itself: what prefill computes at once, decode must compute token by token."""

import numpy as np

from gpu.engine import Engine
from gpu.errors import SelfCheckError

_TOKENS = 4
_TOLERANCE = 1e-3  # of the largest logit, far above rounding and far below any mistake


def self_check(engine: Engine) -> None:
    """Compare prefill of a few tokens with as many decode steps, over a cache whose unused part is NaN.

    Takes one free row and leaves it as it was found: empty and zero.

    Raises
    ------
    SelfCheckError
        If the logits differ, or something that was never written has been read.
    """
    buffers, cache = engine.buffers, engine.kv_cache
    count = min(_TOKENS, cache.capacity)
    tokens = np.arange(1, count + 1) * 7919 % engine.model.vocab
    [row] = cache.acquire(1)
    touched = cache.data[:, :, row, :, : 2 * count]
    try:
        touched[...] = np.nan
        buffers.input_ids[row, :count] = tokens
        buffers.input_lengths[row] = count
        engine.prefill([row])
        at_once = buffers.logits[row].copy()

        cache.truncate(row, 0)
        touched[...] = np.nan
        buffers.input_lengths[row] = 1
        engine.prefill([row])
        for token in tokens[1:]:
            buffers.next_token[row] = token
            engine.decode([row])
        one_by_one = buffers.logits[row].copy()
    finally:
        touched[...] = 0
        buffers.input_ids[row, :count] = 0
        buffers.input_lengths[row] = buffers.next_token[row] = 0
        buffers.logits[row] = 0
        cache.release([row])
    difference = float(np.max(np.abs(at_once - one_by_one)))
    allowed = _TOLERANCE * max(1.0, float(np.max(np.abs(at_once))))
    if not difference <= allowed:  # NaN must fail too
        raise SelfCheckError(
            f"the {engine.name} engine failed its self-check: {count} tokens at once and one by one give logits that "
            f"differ by {difference:.3g}, allowed {allowed:.3g}. The weights may hold NaN or infinities, or this "
            f"build of NumPy computes wrongly: try another checkpoint, or another version of NumPy"
        )
