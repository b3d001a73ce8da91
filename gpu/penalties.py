"""What changes a row's logits before a token is drawn, by a specification that gives the same bits on every device.

The specification
-----------------
Inputs are a row of float32 logits, the tokens of the row so far, t[0] to t[n - 1], of which those from position
`output_from` on are its output, and the parameters of `Penalties`. "rn32" is one rounding to float32, to nearest, ties
to even; parameters are rounded by it first. Each token's logit x goes through these steps, in the order of Hugging
Face's processors of the same meaning; nothing is fused.

1. *Bias.* x = rn32(x + bias of the token). A token that is forbidden, or not among those allowed, gets -inf instead.
2. *Repetition.* If the token is one of t: x = rn32(x * repetition) if x < 0, else rn32(x / repetition).
3. *Presence and frequency.* If the token stands c > 0 times in the output: x = rn32(x - presence), then
   x = rn32(x - rn32(frequency * c)).
4. *N-grams.* With k = no_repeat_ngram > 0: a token that would complete k tokens that already stand in t in this order
   gets -inf.
5. *Stops.* While n < output_from + min_new_tokens each token of `stops` gets -inf.

The engine's logits stay as they are, so that drawing again gives the same token.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

MOST_STOPS = 64  # tokens that an engine can hold back
MOST = 1e4  # of a bias or a penalty, either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """The parameters of the specification; as they are by default they change nothing."""

    repetition: float = 1.0  # above 1 makes what was there less likely
    presence: float = 0.0
    frequency: float = 0.0
    no_repeat_ngram: int = 0  # tokens; 0 is off
    bias: tuple[tuple[int, float], ...] = ()  # tokens and what is added to their logits
    forbidden: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None  # None: all
    stops: tuple[int, ...] = ()
    min_new_tokens: int = 0
    output_from: int = 0  # the position of the first token that is output

    @property
    def counts(self) -> bool:
        """Whether it matters which tokens are there."""
        return self.repetition != 1 or self.presence != 0 or self.frequency != 0 or self.no_repeat_ngram > 0

    @property
    def min_length(self) -> int:
        """Tokens that a row has before it may draw one of its stops."""
        return self.output_from + self.min_new_tokens if self.stops and self.min_new_tokens else 0

    def check(self, vocab: int) -> None:
        """Raise a ValueError that names the first parameter out of its range, or a token that there is not."""
        if not 1 / MOST <= self.repetition <= MOST:
            raise ValueError(f"repetition is {self.repetition}, expected {1 / MOST} to {MOST:g} (1 turns it off)")
        for name in ("presence", "frequency"):
            if not -MOST <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {-MOST:g} to {MOST:g} (0 turns it off)")
        for name in ("no_repeat_ngram", "min_new_tokens", "output_from"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        for token, bias in self.bias:
            if not -MOST <= bias <= MOST:
                raise ValueError(f"the bias of token {token} is {bias}, expected {-MOST:g} to {MOST:g}")
        if self.min_length and len(self.stops) > MOST_STOPS:
            raise ValueError(f"{len(self.stops)} stops are held back, expected at most {MOST_STOPS}")
        named = (*self.forbidden, *(self.allowed or ()), *self.stops, *(token for token, _ in self.bias))
        for token in named:
            if not 0 <= token < vocab:
                raise ValueError(f"token {token} is named, the model knows tokens 0 to {vocab - 1}")

    def biases(self, vocab: int) -> Float32Array | None:
        """What step 1 adds to each logit, -inf where it masks: [vocab] float32; None if that is nothing."""
        if not (self.bias or self.forbidden or self.allowed is not None):
            return None
        found = np.zeros(vocab, np.float32)
        for token, bias in self.bias:
            found[token] = bias
        if self.allowed is not None:
            masked = np.ones(vocab, np.bool_)
            masked[list(self.allowed)] = False
            found[masked] = -math.inf
        found[list(self.forbidden)] = -math.inf
        return found


NONE = Penalties()


def penalised(
    logits: Float32Array, tokens: npt.NDArray[np.int32], penalties: Penalties, *, biases: Float32Array | None = None
) -> Float32Array:
    """Give the logits that a token is drawn from.

    Parameters
    ----------
    logits : ndarray, [vocab] float32
        Stay as they are.
    tokens : ndarray, [n] int32
        Those of the row so far.
    penalties : Penalties
        Passed its `check`.
    biases : ndarray, [vocab] float32, optional
        What `penalties.biases` gave, if somebody kept it.

    Returns
    -------
    ndarray, [vocab] float32
    """
    if biases is None:
        biases = penalties.biases(len(logits))
    found: Float32Array = logits.copy() if biases is None else logits + biases
    with np.errstate(over="ignore", invalid="ignore"):  # whatever comes of it, drawing looks at
        if penalties.repetition != 1:
            seen, repetition = np.unique(tokens), np.float32(penalties.repetition)
            x = found[seen]
            found[seen] = np.where(x < 0, x * repetition, x / repetition)
        if penalties.presence or penalties.frequency:
            output, counts = np.unique(tokens[penalties.output_from :], return_counts=True)
            found[output] -= np.float32(penalties.presence)
            found[output] -= np.float32(penalties.frequency) * counts.astype(np.float32)
    if penalties.no_repeat_ngram:
        found[_completing(tokens, penalties.no_repeat_ngram)] = -math.inf
    if len(tokens) < penalties.min_length:
        found[list(penalties.stops)] = -math.inf
    return found


def _completing(tokens: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """Give the tokens that would complete so many tokens that already stand there in this order."""
    if len(tokens) < size:
        return tokens[:0]
    last = tokens[len(tokens) - size + 1 :]
    there = np.lib.stride_tricks.sliding_window_view(tokens, size)
    completing: npt.NDArray[np.int32] = there[(there[:, :-1] == last).all(axis=1), -1]
    return completing
