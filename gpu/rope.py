"""Rotary position embeddings: how fast each pair of dimensions turns, and the table that turns them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.errors import CheckpointError

Float32Array = npt.NDArray[np.float32]

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_DEFAULT_THETA = 10_000.0


@dataclass(slots=True, frozen=True)
class RopeConfig:
    """Rotary embeddings as config.json describes them; fields that a type does not use keep their defaults."""

    type: str = "default"
    theta: float = _DEFAULT_THETA
    factor: float = 1.0
    original_max_positions: int = 0  # llama3, yarn: the context length of pretraining
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    attention_factor: float = 1.0  # yarn: scales cosine and sine

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, max_positions: int) -> "RopeConfig":
        """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

        Raises
        ------
        CheckpointError
            If the type is unknown, a factor is missing or makes no sense, or only a part of each head turns.
        """
        given = values.get("rope_scaling") or values.get("rope_parameters") or {}
        if not isinstance(given, Mapping):
            raise CheckpointError(f"the rope parameters are {given!r:.200}, expected a JSON object")
        if any(isinstance(value, Mapping) for value in given.values()):
            raise CheckpointError(f"rope parameters that differ from layer to layer are not supported: {given!r:.200}")
        parameters = _Parameters(given)
        kind = str(given.get("rope_type", given.get("type", "default")))
        if kind not in ROPE_TYPES:
            raise CheckpointError(f"the rope type {kind!r:.80} is not supported: expected one of {ROPE_TYPES}")
        partial = given.get("partial_rotary_factor", values.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise CheckpointError(f"partial_rotary_factor is {partial!r:.80}: only whole heads can be rotated")

        theta = _Parameters({"rope_theta": _DEFAULT_THETA, **values, **given}).number("rope_theta")
        if kind == "default":
            return cls(theta=theta)
        if kind == "linear":
            return cls("linear", theta, parameters.number("factor"))
        # A top-level value wins over the one among the parameters, as in transformers.
        original = values.get("original_max_position_embeddings", given.get("original_max_position_embeddings"))
        original = max_positions if original is None else original
        if isinstance(original, bool) or not isinstance(original, int) or not 1 <= original <= 1 << 27:
            raise CheckpointError(f"original_max_position_embeddings is {original!r:.80}, expected a positive integer")
        if kind == "llama3":
            low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
            if not low < high:
                raise CheckpointError(f"high_freq_factor {high} must be greater than low_freq_factor {low}")
            return cls(kind, theta, parameters.number("factor"), original, low_freq_factor=low, high_freq_factor=high)
        if theta <= 1:
            raise CheckpointError(f"rope_theta is {theta}, yarn needs more than 1")
        factor = parameters.number("factor", max_positions / original)
        truncate = given.get("truncate", True)
        return cls(
            type="yarn",
            theta=theta,
            factor=factor,
            original_max_positions=original,
            beta_fast=parameters.number("beta_fast", 32.0),
            beta_slow=parameters.number("beta_slow", 1.0),
            truncate=bool(truncate),
            attention_factor=_yarn_attention_factor(parameters, factor),
        )

    def inverse_frequencies(self, head_dim: int) -> Float32Array:
        """Give the radians per position of each pair of dimensions.

        The roundings to float32 follow transformers (`modeling_rope_utils.py`), since an error of one unit in the
        last place grows with the position.

        Parameters
        ----------
        head_dim : int
            Dimensions of a head; pair i is (i, i + head_dim / 2).

        Returns
        -------
        ndarray, [head_dim // 2] float32
        """
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        periods = np.power(self.theta, exponents, dtype=np.float64).astype(np.float32)
        plain: Float32Array = np.float32(1) / periods
        interpolated: Float32Array = np.float32(1) / (np.float32(self.factor) * periods)
        match self.type:
            case "linear":
                plain /= np.float32(self.factor)
                return plain
            case "llama3":
                return self._llama3(plain)
            case "yarn":
                return self._yarn(plain, interpolated)
            case _:
                return plain

    def table(self, head_dim: int, positions: int) -> Float32Array:
        """Give cosines and sines for positions 0 to `positions` - 1.

        The first half of each sine row is negated: a head x turns by `x * cos + swap(x) * sin`, where swap exchanges
        the halves of x. Source: RoFormer (Su et al. 2021, eq. 34), in the half-split order of Llama checkpoints.

        Returns
        -------
        ndarray, [2 (cosine, signed sine), positions, head_dim] float32
        """
        angles = np.outer(np.arange(positions, dtype=np.float32), self.inverse_frequencies(head_dim))
        table = np.empty((2, positions, head_dim), np.float32)
        half = head_dim // 2
        table[0, :, :half] = table[0, :, half:] = np.cos(angles)
        table[1, :, half:] = np.sin(angles)
        np.negative(table[1, :, half:], out=table[1, :, :half])
        table *= np.float32(self.attention_factor)
        return table

    def _llama3(self, plain: Float32Array) -> Float32Array:
        """Slow pairs are divided by the factor, fast ones kept, those between blended (Llama 3.1)."""
        low, high = np.float32(self.low_freq_factor), np.float32(self.high_freq_factor)
        turns = np.float32(self.original_max_positions) * plain / np.float32(2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        blended: Float32Array = (1 - blend) * (plain / np.float32(self.factor)) + blend * plain
        return blended

    def _yarn(self, extrapolated: Float32Array, interpolated: Float32Array) -> Float32Array:
        """Blend by how often a pair turns within the original context (YaRN, Peng et al. 2023, section 3.2)."""
        head_dim = 2 * len(extrapolated)

        def dimension(turns: float) -> float:
            wavelengths = self.original_max_positions / (turns * 2 * math.pi)
            return head_dim * math.log(wavelengths) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        high += 0.001 if low == high else 0
        ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        keep = 1 - np.clip(ramp, 0, 1)
        blended: Float32Array = interpolated * (1 - keep) + extrapolated * keep
        return blended


@dataclass(slots=True, frozen=True)
class _Parameters:
    values: Mapping[str, Any]

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise CheckpointError(f"the rope parameter {name} is {value!r:.80}, expected a positive number")
        return float(value)


def _yarn_attention_factor(parameters: _Parameters, factor: float) -> float:
    """Give the factor on cosine and sine: 0.1 ln(factor) + 1 unless told otherwise (YaRN, section 3.4)."""

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if parameters.values.get("attention_factor") is not None:
        return parameters.number("attention_factor")
    if parameters.values.get("mscale") and parameters.values.get("mscale_all_dim"):
        return scale(parameters.number("mscale")) / scale(parameters.number("mscale_all_dim"))
    return scale(1.0)
