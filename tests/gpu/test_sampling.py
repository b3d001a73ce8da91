"""Sampling keeps to its specification: known answers, properties, and the distribution."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpu import LogitsError, candidates, sample
from gpu.sampling import philox4x32, random_bits

pytestmark = pytest.mark.slow

ALL: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

finite = st.floats(min_value=-1e4, max_value=1e4, width=32)
logit = st.one_of(finite, st.sampled_from([0.0, -0.0, 1.0, -math.inf, 3.4e38, -3.4e38, 1e-45]))
rows = arrays(np.float32, st.integers(1, 300), elements=logit).filter(lambda row: bool(np.any(np.isfinite(row))))
parameters = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.floats(1e-3, 10), st.sampled_from([0.0, 5e-324, 1e-30, 1.0, 1e30, 1.7e308])),
        "top_k": st.integers(0, 320),
        "top_p": st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])),
        "min_p": st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])),
    }
)
seeds = st.integers(0, 2**64 - 1)
positions = st.integers(0, 2**31)


# The vectors that the authors of Philox publish with Random123 (kat_vectors, philox4x32, 10 rounds).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    assert philox4x32(counter, key) == expected


def test_random_bits_join_the_first_two_words() -> None:
    assert random_bits(0, 0) == 0xE169C58D6627E8D5
    x0, x1, _, _ = philox4x32((5, 1, 0, 0), (7, 3))
    assert random_bits(7 + (3 << 32), 5 + (1 << 32)) == x0 + (x1 << 32)


def _weights_of_the_specification(logits: np.ndarray, temperature: float) -> list[int]:
    """Step 3, one token at a time, in exact arithmetic rounded where the specification rounds."""
    coefficients = ["0x1.62e43p-1", "0x1.ebfbep-3", "0x1.c6af6cp-5"]
    coefficients += ["0x1.3b2a1cp-7", "0x1.5f08ap-10", "0x1.44400ap-13"]

    def rn32(value: float) -> float:  # one rounding: every argument below is exact in float64
        with np.errstate(over="ignore"):
            return float(np.float32(value))

    try:
        quotient = 1.4426950408889634 / temperature
    except OverflowError:
        quotient = math.inf
    scale = rn32(min(max(quotient, 2.0**-126), float(np.finfo(np.float32).max)))
    largest = float(max(logits))
    weights = []
    for value in logits:
        z = rn32(rn32(float(value) - largest) * scale)
        if not z >= -31:
            weights.append(0)
            continue
        n = round(z)
        f = z - n
        p = float.fromhex(coefficients[-1])
        for digits in coefficients[-2::-1]:
            p = rn32(rn32(p * f) + float.fromhex(digits))
        p = rn32(rn32(p * f) + 1.0)
        weights.append(math.floor(Fraction(p) * Fraction(2) ** (30 + n)))
    return weights


def _candidates_of_the_specification(
    logits: np.ndarray, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> dict[int, int]:
    weights = _weights_of_the_specification(logits, temperature)
    if 0 < top_k < len(logits):
        last = sorted(logits, reverse=True)[top_k - 1]
        weights = [weight if value >= last else 0 for weight, value in zip(weights, logits, strict=True)]
    if top_p < 1:
        needed = max(1, math.ceil(Fraction(sum(weights)) * Fraction(top_p)))
        least = max(w for w in set(weights) if sum(other for other in weights if other >= w) >= needed)
        weights = [weight if weight >= least else 0 for weight in weights]
    weights = [weight if weight >= Fraction(min_p) * 2**30 else 0 for weight in weights]
    return {token: weight for token, weight in enumerate(weights) if weight}


@settings(max_examples=400, deadline=None)
@given(rows, parameters.filter(lambda values: values["temperature"] > 0))
@example(np.arange(300, dtype=np.float32) / 7, {"temperature": 1.0, "top_k": 2, "top_p": 0.7, "min_p": 0.0})
def test_candidates_are_those_of_the_specification(logits: np.ndarray, values: dict[str, Any]) -> None:
    kept = candidates(logits, **values)
    # top_p as a 64-bit fraction is exact for all but the smallest numbers, which keep the largest weight either way.
    expected = _candidates_of_the_specification(logits, **values)
    assert dict(zip(kept.token_ids.tolist(), kept.weights.tolist(), strict=True)) == expected


@settings(max_examples=200, deadline=None)
@given(rows, parameters, seeds, positions)
def test_draws_follow_the_running_sum(logits: np.ndarray, values: dict[str, Any], seed: int, position: int) -> None:
    token = sample(logits, **values, seed=seed, position=position)
    kept = candidates(logits, **values)
    target = random_bits(seed, position) * int(kept.weights.sum()) >> 64
    chosen = kept.token_ids.tolist().index(token)
    below = sum(kept.weights.tolist()[:chosen])
    assert below <= target < below + int(kept.weights[chosen])
    assert np.isfinite(logits[token])
    if values["temperature"] == 0:
        assert token == logits.tolist().index(max(logits))


@settings(max_examples=150, deadline=None)
@given(rows, parameters.filter(lambda values: values["temperature"] > 0), st.randoms(use_true_random=False))
def test_candidates_move_with_a_permutation(logits: np.ndarray, values: dict[str, Any], random: Any) -> None:
    order = list(range(len(logits)))
    random.shuffle(order)
    kept, moved = candidates(logits, **values), candidates(logits[order], **values)
    before = dict(zip(kept.token_ids.tolist(), kept.weights.tolist(), strict=True))
    after = {
        order[token]: weight for token, weight in zip(moved.token_ids.tolist(), moved.weights.tolist(), strict=True)
    }
    assert after == before


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.booleans())
def test_top_k_of_a_large_vocabulary_is_exact(seed: int, top_k: int, coarse: bool) -> None:
    logits = np.random.default_rng(seed).standard_normal(20_001).astype(np.float32)
    if coarse:  # many ties
        logits = np.round(logits * 4)
    kept = candidates(logits, **ALL | {"top_k": top_k})
    last = np.sort(logits)[-top_k]
    assert kept.token_ids.tolist() == np.flatnonzero(logits >= last).tolist()


def test_ties_at_the_edge_stay() -> None:
    logits = np.array([1, 3, 2, 3, 2], np.float32)
    assert candidates(logits, **ALL | {"top_k": 3}).token_ids.tolist() == [1, 2, 3, 4]
    assert candidates(logits, **ALL | {"top_p": 0.2}).token_ids.tolist() == [1, 3]
    assert candidates(logits, **ALL | {"min_p": 1.0}).token_ids.tolist() == [1, 3]
    assert sample(logits, **ALL | {"temperature": 0.0}, seed=9, position=9) == 1


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 1e-3], np.float32)
    drawn = {sample(logits, **ALL | {"temperature": 1e6}, seed=seed, position=0) for seed in range(200)}
    assert drawn == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, np.nan, 1], "NaN"),
        ([np.nan] * 3, "NaN"),
        ([0, np.inf, -np.inf], r"\+inf"),
        ([-np.inf] * 3, "nothing but -inf"),
    ],
)
def test_logits_without_a_distribution_are_refused(temperature: float, values: list[float], message: str) -> None:
    with pytest.raises(LogitsError, match=message):
        sample(np.array(values, np.float32), **ALL | {"temperature": temperature}, seed=0, position=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 2**63 + 12345])
def test_draws_are_distributed_as_softmax(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(1).standard_normal(40).astype(np.float32) * 2
    draws = 20_000
    tokens = [sample(logits, **ALL | {"temperature": temperature}, seed=seed, position=n) for n in range(draws)]
    exact = np.exp(logits.astype(np.float64) / temperature)
    expected = draws * exact / exact.sum()
    observed = np.bincount(tokens, minlength=len(logits)).astype(np.float64)
    common = expected >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    degrees = len(expected) - 1
    chi_square = float(((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    # Wilson and Hilferty's normal approximation; 4 sigma is one failure in 30,000, and the seeds are fixed.
    sigma = ((chi_square / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    assert abs(sigma) < 4


def test_seeds_and_positions_give_different_draws() -> None:
    logits = np.zeros(1000, np.float32)
    by_seed = [sample(logits, **ALL, seed=seed, position=3) for seed in range(300)]
    by_position = [sample(logits, **ALL, seed=3, position=position) for position in range(300)]
    assert len(set(by_seed)) > 220
    assert len(set(by_position)) > 220
    assert by_seed[3] == by_position[3]
