"""A digest of logits: enough to see that they differ in a bit, and by how much it matters."""

import hashlib
import math
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import numpy as np

from phases.context import Generation
from phases.token_ids import Row, TokenId

TOP = 4  # how many of the largest logits are kept


class RowDigest(msgspec.Struct, forbid_unknown_fields=True):
    """The digest of one row's logits, as a record holds it."""

    row: Row
    hash: Annotated[str, msgspec.Meta(max_length=100)]
    ids: Annotated[list[TokenId], msgspec.Meta(max_length=1000)]  # of the largest logits, the largest first
    logits: list[float | None]  # None: it was not finite
    logsumexp: float | None

    @property
    def probabilities(self) -> list[tuple[int, float]]:
        """The ids of the likeliest tokens with their probabilities at temperature 1, as far as they are known."""
        total = self.logsumexp
        if total is None:
            return []
        pairs = zip(self.ids, self.logits, strict=True)
        return [(token, math.exp(min(0.0, logit - total))) for token, logit in pairs if logit is not None]


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


def read(value: Any) -> list[RowDigest]:
    """The digests of a record, one a row.

    Raises
    ------
    ValueError
        When it is no digest of logits.
    """
    digests = msgspec.convert(value, list[RowDigest])
    for digest in digests:
        if not 1 <= len(digest.ids) == len(digest.logits):
            raise ValueError(f"a digest has as many ids as logits, not {len(digest.ids)} and {len(digest.logits)}")
    return digests


def explain(recorded: Any, replayed: Any) -> dict[str, Any]:
    """The first row that differs: margins between the two likeliest tokens, the largest difference, and who leads."""
    for old, new in zip(read(recorded), read(replayed), strict=False):
        if old.hash == new.hash:
            continue
        before, after = (dict(zip(row.ids, row.logits, strict=True)) for row in (old, new))
        pairs = [(before[token], after[token]) for token in before if token in after]
        both = [abs(one - other) for one, other in pairs if one is not None and other is not None]
        return {
            "row": old.row,
            "recorded_margin": _margin(old.logits),
            "replayed_margin": _margin(new.logits),
            "largest_difference": max(both, default=None),
            "likeliest_token": "the same" if old.ids[0] == new.ids[0] else f"{old.ids[0]} -> {new.ids[0]}",
        }
    return {}


def _margin(logits: list[float | None]) -> float | None:
    if len(logits) < 2 or logits[0] is None or logits[1] is None:
        return None
    return logits[0] - logits[1]
