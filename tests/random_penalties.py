"""Penalties at random, for engines that must agree with the specification."""

import numpy as np

from gpu import Penalties


def some_penalties(random: np.random.Generator, vocab: int) -> Penalties:
    """Each of them now and then, alone and with others."""

    def ids(most: int) -> tuple[int, ...]:
        return tuple(random.integers(0, vocab, random.integers(1, most)).tolist())

    return Penalties(
        repetition=float(random.choice([1.0, 1.3, 0.7])),
        presence=float(random.choice([0.0, 0.9, -0.4])),
        frequency=float(random.choice([0.0, 0.3, -0.1])),
        no_repeat_ngram=int(random.choice([0, 0, 1, 2, 3, 60])),
        bias=tuple((token, float(random.normal() * 5)) for token in ids(9)) if random.random() < 0.5 else (),
        forbidden=ids(9) if random.random() < 0.5 else (),
        allowed=ids(2 * vocab) if random.random() < 0.3 else None,
        stops=ids(20),
        min_new_tokens=int(random.choice([0, 3, 90])),
        output_from=int(random.integers(0, 30)),
    )  # fmt: skip
