"""A digest of logits: enough to see that they differ in a bit, and by how much it matters."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from phases.context import Generation

TOP = 4  # how many of the largest logits are kept


def of_rows(context: Generation, rows: Iterable[int]) -> list[dict[str, Any]]:
    """For each row a hash of its logits' bytes, the largest of them, and the logarithm of the sum of all exponentials.

    A token's probability (at temperature 1) is exp(logit - logsumexp).
    """
    engine = context.bound_engine
    return [{"row": row, **_digest(engine.read_logits(context.slots[row]))} for row in rows]


def _digest(logits: "np.ndarray[Any, np.dtype[np.float32]]") -> dict[str, Any]:
    count = min(TOP, logits.size)
    largest = np.argpartition(logits, -count)[-count:]
    largest = largest[np.lexsort((largest, -logits[largest]))]
    values = [float(value) if np.isfinite(value) else None for value in logits[largest]]
    digest = hashlib.blake2b(logits.tobytes(), digest_size=8).hexdigest()
    peak = float(logits.max())
    total = peak + float(np.log(np.exp(logits - peak, dtype=np.float64).sum())) if np.isfinite(peak) else None
    return {"hash": digest, "ids": [int(token) for token in largest], "logits": values, "logsumexp": total}


def explain(recorded: Any, replayed: Any) -> dict[str, Any]:
    """The first row that differs: margins between the two likeliest tokens, the largest difference, and who leads."""
    for old, new in zip(recorded, replayed, strict=False):
        if old["hash"] == new["hash"]:
            continue
        before, after = (dict(zip(row["ids"], row["logits"], strict=True)) for row in (old, new))
        both = [abs(before[i] - after[i]) for i in before if i in after and None not in (before[i], after[i])]
        return {
            "row": old["row"],
            "recorded_margin": _margin(old["logits"]),
            "replayed_margin": _margin(new["logits"]),
            "largest_difference": max(both, default=None),
            "likeliest_token": "the same" if old["ids"][0] == new["ids"][0] else f"{old['ids'][0]} -> {new['ids'][0]}",
        }
    return {}


def _margin(logits: list[float | None]) -> float | None:
    if len(logits) < 2 or logits[0] is None or logits[1] is None:
        return None
    return logits[0] - logits[1]
