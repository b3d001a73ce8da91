"""Draws the tokens of very many rows at once, by the letter of `gpu.sampling`; for comparing devices with."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np

from gpu.sampling import Thresholds, integer_weights, thresholds

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@dataclass
class Options:
    """How each of the rows is sampled."""

    temperature: np.ndarray  # [rows] float64
    top_k: np.ndarray  # [rows] int64
    top_p: np.ndarray  # [rows] float64
    min_p: np.ndarray  # [rows] float64
    seed: np.ndarray  # [rows] uint64
    position: np.ndarray  # [rows] uint64

    @classmethod
    def random(cls, random: np.random.Generator, rows: int, vocab: int, capacity: int) -> Self:
        """Ordinary values, those that turn something off, and extremes."""
        return cls(
            random.choice([0.0, 5e-324, 1e-300, 1e-3, 0.05, 0.7, 1.0, 1.0, 3.0, 1e3, 1e300], rows),
            random.choice([0, 0, 0, 1, 2, 5, vocab - 1, vocab, 2**40], rows),
            random.choice([1.0, 1.0, 0.0, 5e-324, 1e-9, 0.3, 0.5, 0.9, 0.999999, 1 - 2**-53], rows),
            random.choice([0.0, 0.0, 1e-12, 1e-9, 0.05, 0.5, 1.0], rows),
            random.choice(np.array([0, 1, 2**32 - 1, 2**32, 2**64 - 1], np.uint64), rows)
            ^ random.integers(0, 2**64, rows, np.uint64) * random.integers(0, 2, rows, np.uint64),
            random.integers(0, capacity + 1, rows).astype(np.uint64),
        )

    def of(self, row: int) -> dict[str, float | int]:
        """Give those of a row, as `gpu.sample` takes them."""
        return {field.name: getattr(self, field.name)[row].item() for field in fields(self)}

    @cached_property
    def exact(self) -> list[Thresholds]:
        """Give what they mean, as integers."""
        return [
            thresholds(temperature=temperature, top_p=top_p, min_p=min_p)
            for temperature, top_p, min_p in zip(self.temperature, self.top_p, self.min_p, strict=True)
        ]


def random_logits(random: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    """Rows of every kind: of all scales, with ties, masks, zeros of both signs, denormals, the largest numbers."""
    logits = random.standard_normal((rows, vocab), np.float32)
    logits *= random.choice(np.array([0.01, 1, 1, 4, 30, 1e-40, 1e35], np.float32), (rows, 1))
    kind = random.integers(0, 8, rows)
    logits[kind == 0] = np.round(logits[kind == 0])
    few = np.array([0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, -np.inf], np.float32)
    logits[kind == 1] = random.choice(few, (int((kind == 1).sum()), vocab))
    logits[kind == 2] = random.choice(few[:5], (int((kind == 2).sum()), vocab))
    masked = random.random((rows, vocab)) < random.choice([0.1, 0.9, 1.0], (rows, 1))
    logits[masked & (kind == 3)[:, None]] = -np.inf
    chosen = random.integers(0, vocab, rows)  # one token at least can be drawn
    own = logits[np.arange(rows), chosen]
    logits[np.arange(rows), chosen] = np.where(np.isfinite(own), own, np.float32(1.5))
    return logits


def draw(logits: np.ndarray, options: Options) -> np.ndarray:
    """Give the token of each row of logits, [rows, vocab] float32, by steps 2 to 7 of the specification."""
    rows, vocab = logits.shape
    scale = np.array([each.scale for each in options.exact], np.float32)
    mass = np.array([each.top_p or 0 for each in options.exact], np.uint64)
    limited = np.array([each.top_p is not None for each in options.exact])
    least = np.array([each.min_weight for each in options.exact], np.uint64)

    weights = _weights(logits, scale)
    k = np.where((options.top_k > 0) & (options.top_k < vocab), options.top_k, vocab)
    last = np.take_along_axis(np.sort(logits, axis=1), vocab - k[:, None], axis=1)
    weights[logits < last] = 0

    descending = np.sort(weights, axis=1)[:, ::-1]
    running = np.cumsum(descending, axis=1, dtype=np.uint64)
    high, low = _product(running[:, -1], mass)
    needed = np.maximum(high + (low != 0), 1)
    reached = np.argmax(running >= needed[:, None], axis=1)
    smallest = np.where(limited, descending[np.arange(rows), reached], 0)
    weights[weights < np.maximum(smallest, least)[:, None]] = 0

    running = np.cumsum(weights, axis=1, dtype=np.uint64)
    target, _ = _product(_random_bits(options.seed, options.position), running[:, -1])
    drawn = np.argmax(running > target[:, None], axis=1)
    return np.where(options.temperature == 0, np.argmax(logits, axis=1), drawn)


def _weights(logits: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Step 3."""
    with np.errstate(over="ignore", invalid="ignore"):
        z = logits - logits.max(axis=1, keepdims=True)
        z *= scale[:, None]
    none = ~(z >= -31)
    z[none] = 0
    weights = integer_weights(z)
    weights[none] = 0
    return weights


def _product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the upper and the lower 64 bits of products of 64 bits."""
    a1, a0, b1, b0 = a >> _32, a & _LOW, b >> _32, b & _LOW
    middle = a1 * b0 + (a0 * b0 >> _32)
    other = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _32) + (other >> _32), a * b


def _random_bits(seed: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Step 7: Philox 4x32."""
    x0, x1, x2, x3 = position & _LOW, position >> _32, np.zeros_like(position), np.zeros_like(position)
    k0, k1 = seed & _LOW, seed >> _32
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * x0, np.uint64(0xCD9E8D57) * x2
        x0, x1 = (product1 >> _32) ^ x1 ^ k0, product1 & _LOW
        x2, x3 = (product0 >> _32) ^ x3 ^ k1, product0 & _LOW
        k0, k1 = k0 + np.uint64(0x9E3779B9) & _LOW, k1 + np.uint64(0xBB67AE85) & _LOW
    return x0 | x1 << _32
