"""Holds an engine against another one that has the same weights: logits, and the token that is likeliest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpu.engine import Engine

# Of the largest logit, by what the engine rounds numbers to: far above rounding, and below what changes a text.
_TOLERANCES = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05}


@dataclass(slots=True, frozen=True)
class Verdict:
    """How near an engine comes to its reference.

    Attributes
    ----------
    off_by
        The largest difference of logits, as a share of the largest logit; NaN if there is one among them.
    allowed
        What it may be, for numbers of the engine's dtype.
    same
        At how many of the `tokens` both hold the same token likeliest.
    doubtful
        At how many of the others the reference holds both tokens so nearly alike that rounding decides.
    """

    dtype: str
    off_by: float
    allowed: float
    tokens: int
    same: int
    doubtful: int

    @property
    def passed(self) -> bool:
        """Whether the engine computes what the reference does."""
        return self.off_by <= self.allowed and self.same + self.doubtful == self.tokens


def verdict(engine: Engine, reference: Engine, prompt: Sequence[int], *, tokens: int) -> Verdict:
    """Feed both the prompt, and then so many tokens one by one, each the one that the reference holds likeliest.

    Takes a free row of each.

    Raises
    ------
    CapacityError
        If a row does not hold so many.
    """
    both = (reference, engine)
    rows = [one.kv_cache.acquire(1)[0] for one in both]
    off_by, largest, same, doubtful = [], 0.0, 0, 0
    dtype = str(engine.environment()["dtype"])
    allowed = _TOLERANCES[dtype]
    try:
        for one, row in zip(both, rows, strict=True):
            one.write_prompt(row, prompt)
            one.prefill([row])
        for number in range(tokens):
            expected, found = (one.read_logits(row) for one, row in zip(both, rows, strict=True))
            largest = max(largest, float(np.abs(expected).max()))
            off_by.append(float(np.abs(found - expected).max()))
            likeliest, theirs = int(expected.argmax()), int(found.argmax())
            same += likeliest == theirs
            doubtful += likeliest != theirs and expected[likeliest] - expected[theirs] <= 2 * allowed * largest
            if number < tokens - 1:
                for one, row in zip(both, rows, strict=True):
                    one.write_token(row, likeliest)
                    one.decode([row])
    finally:
        for one, row in zip(both, rows, strict=True):
            one.kv_cache.release([row])
    return Verdict(dtype, float(np.max(off_by)) / largest, allowed, tokens, same, doubtful)
