"""Drawing a token from logits, by a specification that gives the same token on every device.

The specification
-----------------
Inputs are a row of float32 logits (`-inf` masks a token), the float64 parameters temperature, top_p and min_p, the
integers top_k and seed, and the absolute position of the drawn token. Comparisons of logits are numeric (-0.0 equals
0.0). "rn32" is one rounding to float32, to nearest, ties to even; nothing is fused or reordered.

1. *Check.* The largest logit m must be finite and no logit may be NaN.
2. *Greedy.* At temperature 0 the token is the lowest index among those whose logit equals m. Nothing else is read.
3. *Weights.* s = rn32(log2(e) / temperature) with the quotient in float64, clamped into [2^-126, largest float32].
   For each token z = rn32(rn32(logit - m) * s). If z < -31 the weight is 0. Else n is z rounded to the nearest
   integer (ties to even), f = z - n (exact), and by Horner's rule, with an rn32 after each product and each sum,
   p = 1 + f (C1 + f (C2 + f (C3 + f (C4 + f (C5 + f C6))))), with C1 to C6 as in `_EXP2`. The weight is
   floor(p * 2^(30 + n)), an integer from 0 to 2^30; the largest logit has 2^30. From here all is integer, so sums
   come out the same in any order, and every total is below 2^64.
4. *top_k.* If 0 < top_k < vocabulary: tokens whose logit is below the top_k-th largest get weight 0. Ties stay.
5. *top_p.* If top_p < 1: with T the sum of the weights left and P = floor(top_p * 2^64), the mass to reach is
   R = max(1, ceil(T * P / 2^64)). t is the largest weight such that the weights of at least t sum up to R or more;
   weights below t become 0. This is the smallest set that reaches the mass, ties kept.
6. *min_p.* Weights below ceil(min_p * 2^30) become 0.
7. *Draw.* U is 64 random bits of Philox 4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as
   1, 2, 3"): key (seed mod 2^32, seed div 2^32), counter (position mod 2^32, position div 2^32, 0, 0), and
   U = x0 + 2^32 * x1 of its output (x0, x1, x2, x3). With T the sum of the weights left, r = floor(U * T / 2^64),
   and the token is the first index at which the running sum of the weights, by token id, exceeds r.

No row, batch or step number enters: a draw depends on the logits, the parameters, the seed and the position alone.
"""

import math
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpu.errors import LogitsError

Float32Array = npt.NDArray[np.float32]

WEIGHT_BITS = 30
_LOG2_E = 1.4426950408889634
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-126, (2 - 2.0**-23) * 2.0**127
_LOWEST_EXPONENT = -31

# 2^f = 1 + f (C1 + f (C2 + ...)) on [-1/2, 1/2], C1 first: a Chebyshev fit, relative error below 1e-7 in float32.
_EXP2 = tuple(
    np.float32(float.fromhex(digits))
    for digits in ("0x1.62e43p-1", "0x1.ebfbep-3", "0x1.c6af6cp-5", "0x1.3b2a1cp-7", "0x1.5f08ap-10", "0x1.44400ap-13")
)
_BLOCK = 64  # logits of one block of the top_k prefilter


class Thresholds(NamedTuple):
    """Parameters as the integer part of the specification has them, for whoever draws on another device."""

    scale: float  # s of step 3, a float32; 0 is greedy
    top_p: int | None  # P of step 5; None is off
    min_weight: int  # of step 6


class Candidates(NamedTuple):
    """The tokens that can be drawn; the probability of each is its weight over the sum of the weights."""

    token_ids: npt.NDArray[np.int64]  # [n] int64, ascending
    weights: npt.NDArray[np.uint64]  # [n] uint64, positive, at most 2^30


def sample(
    logits: Float32Array, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> int:
    """Draw one token.

    Parameters
    ----------
    logits : ndarray, [vocab] float32
        -inf masks a token.
    temperature : float
        0 is greedy: the lowest index among the largest logits.
    top_k : int
        Keep the `top_k` largest logits and all that equal the last of them; 0 keeps all.
    top_p : float
        Keep the smallest set of largest weights that reaches this share of the mass, and ties; 1 keeps all.
    min_p : float
        Keep weights of at least this share of the largest; 0 keeps all.
    seed : int
        0 to 2^64 - 1.
    position : int
        The absolute position in its sequence that the token will have.

    Returns
    -------
    int
        The token id.

    Raises
    ------
    LogitsError
        If the logits hold NaN or +inf, or nothing but -inf.
    ValueError
        If a parameter is out of its range.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    if temperature == 0:
        return _checked_argmax(logits)
    token_ids, weights = candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    cumulative = np.cumsum(weights)
    target = random_bits(seed, position) * int(cumulative[-1]) >> 64
    return int(token_ids[np.searchsorted(cumulative, np.uint64(target), side="right")])


def candidates(logits: Float32Array, *, temperature: float, top_k: int, top_p: float, min_p: float) -> Candidates:
    """Give the tokens that `sample` draws from with these parameters, and their integer weights.

    Parameters and errors are those of `sample`.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    best = _checked_argmax(logits)
    if temperature == 0:
        return Candidates(np.array([best]), np.array([1 << WEIGHT_BITS], np.uint64))
    exact = thresholds(temperature=temperature, top_p=top_p, min_p=min_p)
    token_ids = _largest(logits, top_k)
    token_ids, weights = _weights(logits, token_ids, logits[best], np.float32(exact.scale))
    if exact.top_p is not None:
        ordered = np.sort(weights)[::-1]
        running = np.cumsum(ordered)
        needed = max(1, -((-int(running[-1]) * exact.top_p) >> 64))
        least = ordered[np.searchsorted(running, np.uint64(needed), side="left")]
        token_ids, weights = _keep(token_ids, weights, weights >= least)
    if exact.min_weight:
        token_ids, weights = _keep(token_ids, weights, weights >= np.uint64(exact.min_weight))
    return Candidates(token_ids, weights)


def thresholds(*, temperature: float, top_p: float, min_p: float) -> Thresholds:
    """Give the exact numbers that these parameters, which are in their ranges, mean."""
    # float64 holds every quotient but one over a denormal temperature, which the clamp takes care of.
    scale = np.float32(min(max(_LOG2_E / max(temperature, sys.float_info.min), _SMALLEST_SCALE), _LARGEST_SCALE))
    return Thresholds(
        scale=float(scale) if temperature else 0.0,
        top_p=int(math.ldexp(top_p, 64)) if top_p < 1 else None,
        min_weight=math.ceil(min_p * 2**WEIGHT_BITS),
    )


def check_sampling(*, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
    """Raise a ValueError that names the first sampling parameter out of its range."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}, expected a finite number of at least 0 (0 is greedy)")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, expected at least 0 (0 turns it off)")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a number from 0 to 1 (1 turns it off)")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}, expected a number from 0 to 1 (0 turns it off)")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}, expected an integer from 0 to 2**64 - 1")


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give the four 32-bit outputs of Philox 4x32 with 10 rounds (Salmon et al. 2011)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1 = (product1 >> 32) ^ x1 ^ k0, product1 & 0xFFFFFFFF
        x2, x3 = (product0 >> 32) ^ x3 ^ k1, product0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3


def random_bits(seed: int, position: int) -> int:
    """Give the 64 random bits that belong to a seed and an absolute position."""
    counter = (position & 0xFFFFFFFF, position >> 32, 0, 0)
    x0, x1, _, _ = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return x0 | x1 << 32


def _checked_argmax(logits: Float32Array) -> int:
    """Give the lowest index of the largest logit; NumPy's argmax stops at the first NaN."""
    best = int(np.argmax(logits))
    if not math.isfinite(logits[best]):
        found = "+inf" if logits[best] > 0 else "nothing but -inf" if logits[best] < 0 else "NaN"
        raise no_distribution(found, best, len(logits))
    return best


def no_distribution(found: str, token: int, count: int) -> LogitsError:
    """Say what of `count` logits leaves nothing to draw from, and where it stands first."""
    return LogitsError(
        f"the logits hold {found} (first at token {token} of {count}): the weights are damaged, "
        f"or a mask left no token to draw"
    )


def _largest(logits: Float32Array, top_k: int) -> npt.NDArray[np.int64]:
    """Give the ids of the `top_k` largest logits and of all that equal the last of them; all ids if it is off."""
    if not 0 < top_k < len(logits):
        return np.arange(len(logits))
    # The k-th largest of the maxima of k or more blocks is never above the k-th largest logit: one cheap pass
    # leaves a few hundred of 150,000.
    blocks = len(logits) // _BLOCK
    ids = np.arange(len(logits))
    if blocks >= 2 * top_k:
        maxima = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        ids = np.flatnonzero(logits >= np.partition(maxima, blocks - top_k)[blocks - top_k])
    values = logits[ids]
    kept: npt.NDArray[np.int64] = ids[values >= np.partition(values, len(ids) - top_k)[len(ids) - top_k]]
    return kept


def _weights(
    logits: Float32Array, token_ids: npt.NDArray[np.int64], largest: np.float32, scale: np.float32
) -> Candidates:
    """Turn logits into integer weights (step 3), leaving out those of 0."""
    with np.errstate(over="ignore"):  # a product below the smallest float32 is -inf, and its weight 0
        z = (logits[token_ids] - largest) * scale
    token_ids, z = token_ids[z >= _LOWEST_EXPONENT], z[z >= _LOWEST_EXPONENT]
    weights = integer_weights(z)
    return _keep(token_ids, weights, weights > 0)


def integer_weights(z: Float32Array) -> npt.NDArray[np.uint64]:
    """Give the weights of step 3 for z from -31 to 0."""
    exponent = np.rint(z)
    fraction = z - exponent
    power = np.full_like(z, _EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        power *= fraction
        power += coefficient
    power *= fraction
    power += np.float32(1)
    weights: npt.NDArray[np.uint64] = np.ldexp(power, exponent.astype(np.int32) + WEIGHT_BITS).astype(np.uint64)
    return weights


def _keep(token_ids: npt.NDArray[np.int64], weights: npt.NDArray[np.uint64], mask: npt.NDArray[np.bool_]) -> Candidates:
    return Candidates(token_ids[mask], weights[mask])
