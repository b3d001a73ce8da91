"""Checks a loaded engine on itself: what prefill computes at once, decode must compute token by token."""

import numpy as np

from gpu.engine import Engine
from gpu.errors import SelfCheckError

_TOKENS = 4
_TOLERANCE = 1e-3  # of the largest logit, far above rounding and far below any mistake
# Where activations are rounded, a last bit more or less before that can make one of them the next number.
_TOLERANCES = {"int8": 0.1, "bfloat16": 0.05, "float16": 0.01}


def self_check(engine: Engine) -> None:
    """Compare prefill of a few tokens with as many decode steps, over a cache whose unused part is NaN.

    Takes one free row and leaves its cache as it was found.

    Raises
    ------
    SelfCheckError
        If the logits differ, or something that was never written has been read.
    """
    cache, model = engine.kv_cache, engine.model
    count = min(_TOKENS, cache.capacity)
    tokens = [token * 7919 % model.vocab for token in range(1, count + 1)]
    [row] = cache.acquire(1)
    touched = engine.export_kv(row, 0, min(2 * count, cache.capacity))
    try:
        engine.import_kv(row, 0, np.full_like(touched, np.nan))
        engine.write_prompt(row, tokens)
        engine.prefill([row])
        at_once = engine.read_logits(row)

        cache.truncate(row, 0)
        engine.import_kv(row, 0, np.full_like(touched, np.nan))
        engine.write_prompt(row, tokens[:1])
        engine.prefill([row])
        for token in tokens[1:]:
            engine.write_token(row, token)
            engine.decode([row])
        one_by_one = engine.read_logits(row)
    finally:
        engine.import_kv(row, 0, touched)
        cache.release([row])
    difference = float(np.max(np.abs(at_once - one_by_one)))
    tolerance = _TOLERANCES.get(engine.environment().get("activations", ""), _TOLERANCE)
    allowed = tolerance * max(1.0, float(np.max(np.abs(at_once))))
    if not difference <= allowed:  # NaN must fail too
        raise SelfCheckError(
            f"the {engine.name} engine failed its self-check: {count} tokens at once and one by one give logits that "
            f"differ by {difference:.3g}, allowed {allowed:.3g}. The weights may hold NaN or infinities, or "
            f"what it computes with does so wrongly: try another checkpoint, other versions of the libraries that "
            f"phasewalk doctor lists, or another engine"
        )
