"""How rows are sampled, as the kernel is told it: see sampling.cu."""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpu.penalties import Penalties
from gpu.sampling import thresholds

BINS = 2048  # numbers that a threshold's bits are looked for among
_Stages = tuple[int, ...]
_LARGEST: _Stages = (0,)
_TOP_K: _Stages = (1, 2, 3)
_TOP_P: _Stages = (4, 5, 6)
_DRAW: _Stages = (7,)

_PENALISED, _BIASED = 1, 2  # as in penalties.cu

Launches = tuple[tuple[int, int], ...]  # the first and the last stage of each


class Drawing(NamedTuple):
    """How one row is sampled."""

    parameters: dict[str, float | int]
    words: npt.NDArray[np.uint8]  # `struct Sampling` of sampling.cu
    stages: frozenset[int]

    @classmethod
    def of(cls, vocab: int, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> "Drawing":
        """Give what these parameters mean, which are in their ranges."""
        found = thresholds(temperature=temperature, top_p=top_p, min_p=min_p)
        limited, nucleus = 0 < top_k < vocab, found.top_p is not None
        words = struct.pack(
            "=fiQIIQ", found.scale, top_k if limited else 0, found.top_p or 0, found.min_weight, nucleus, seed
        )
        parameters = {
            "temperature": float(temperature), "top_k": top_k, "top_p": float(top_p), "min_p": float(min_p),
            "seed": seed,
        }  # fmt: skip
        stages = _LARGEST
        if temperature:
            stages += (_TOP_K if limited else ()) + (_TOP_P if nucleus else ()) + _DRAW
        return cls(parameters, np.frombuffer(words, np.uint8), frozenset(stages))


def words_of(penalties: Penalties) -> npt.NDArray[np.uint8]:
    """Give penalties as `struct Penalties` of penalties.cu; of a row that has none, all is zero."""
    biased = bool(penalties.bias or penalties.forbidden or penalties.allowed is not None)
    flags = _PENALISED + _BIASED * biased
    if not (penalties.counts or penalties.min_length or biased):
        return np.zeros(32, np.uint8)
    words = struct.pack(
        "=fffiiiiI", penalties.repetition, penalties.presence, penalties.frequency, penalties.no_repeat_ngram,
        penalties.min_length, len(penalties.stops) if penalties.min_length else 0, penalties.output_from, flags,
    )  # fmt: skip
    return np.frombuffer(words, np.uint8)


def launches(rows: Iterable[Drawing], shares: int) -> Launches:
    """Give the launches that draw for rows: a stage each, and one for all where a block has a whole row of logits."""
    if shares == 1:
        return ((_LARGEST[0], _DRAW[0]),)
    return tuple((stage, stage) for stage in sorted(frozenset[int]().union(*(row.stages for row in rows))))
