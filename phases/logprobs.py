"""Log-probabilities of tokens, as the model gives them: before penalties, temperature and cuts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from phases.token_ids import TokenId

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gpu import Engine

IMPOSSIBLE = -9999.0  # stands for minus infinity, which JSON cannot hold


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token in its place, with the natural logarithm of the probability that the model gave to it there.

    Attributes
    ----------
    token_id : int
        The token that came.
    logprob : float
        -9999 where the model, or a phase that masked its logits, rules the token out.
    top : tuple of (int, float)
        The likeliest tokens in this place and their log-probabilities, as many as were asked for, best first.
    """

    token_id: TokenId
    logprob: float
    top: tuple[tuple[TokenId, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """What a model makes of a continuation."""

    tokens: tuple[TokenLogprob, ...]

    @property
    def logprob(self) -> float:
        """The natural logarithm of the probability of the whole continuation."""
        return math.fsum(token.logprob for token in self.tokens)


class Asked(NamedTuple):
    """Tokens of a row that are to be scored: all but the first `known`, at least 1, which only precede them.

    The cache holds `held` of those, fewer than `known`.
    """

    ids: Sequence[int]
    known: int
    top: int  # likeliest tokens to be told in each place
    held: int = 0


def logprob_of(logits: "npt.NDArray[np.float32]", token: int, *, top: int) -> TokenLogprob:
    """Score a token over the logits of its place: [vocab] float32, of which one is finite at least."""
    import numpy as np  # a record is played without

    x = logits.astype(np.float64)
    largest = x.max()
    x -= largest + np.log(np.exp(x - largest).sum())
    likeliest: list[int] = []
    if top:
        least = np.partition(logits, -top)[-top] if top < len(logits) else -np.inf
        kept = np.flatnonzero(logits >= least)
        likeliest = kept[np.lexsort((kept, -logits[kept]))][:top].tolist()  # of equals the lower id, as Sample has it

    def plain(place: int) -> float:
        return float(x[place]) if math.isfinite(x[place]) else IMPOSSIBLE

    return TokenLogprob(token, plain(token), tuple((place, plain(place)) for place in likeliest))


def score_tokens(engine: "Engine", asked: Mapping[int, Asked]) -> dict[int, tuple[TokenLogprob, ...]]:
    """Score tokens that are given, by row of the engine: fed one by one, all rows together.

    Leaves the rows holding all of their tokens but the last.
    """
    for row, one in asked.items():
        engine.kv_cache.truncate(row, one.held)
        engine.write_prompt(row, one.ids[one.held : one.known])
    going = [row for row, one in asked.items() if one.known < len(one.ids)]
    found: dict[int, list[TokenLogprob]] = {row: [] for row in asked}
    if going:
        engine.prefill(going)
    while going:
        for row in list(going):
            one, done = asked[row], found[row]
            token = one.ids[one.known + len(done)]
            done.append(logprob_of(engine.read_logits(row), token, top=one.top))
            if one.known + len(done) == len(one.ids):
                going.remove(row)
            else:
                engine.write_token(row, token)
        if going:
            engine.decode(going)
    return {row: tuple(done) for row, done in found.items()}
