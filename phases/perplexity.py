"""The perplexity of a model on texts, whichever engine runs it: tokens are fed as they stand, and surprise noted."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu import Engine, LogitsError
from phases.errors import RequestError

WINDOW = 512  # tokens, unless told otherwise

Watch = Callable[[int, int], None]  # tokens done, tokens in all


@dataclass(frozen=True, slots=True, eq=False)
class Perplexity:
    """What a model made of texts, token by token: of each text all but its first, which nothing precedes.

    Attributes
    ----------
    nats : ndarray, [tokens] float64
        How surprised the model was: minus the natural logarithm of the probability that it gave to the token.
    likeliest : ndarray, [tokens] int64
        The token that it held likeliest in that place.
    seconds : float
        What it took.
    """

    nats: npt.NDArray[np.float64]
    likeliest: npt.NDArray[np.int64]
    seconds: float

    @property
    def tokens(self) -> int:
        """How many were scored."""
        return len(self.nats)

    @property
    def bits(self) -> float:
        """The mean surprise in bits a token."""
        return float(self.nats.mean() / np.log(2))

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model might as well have chosen: e to the mean surprise in nats."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats.mean()))

    def same_likeliest(self, other: "Perplexity") -> float:
        """In which share of the places both held the same token likeliest."""
        return float((self.likeliest == other.likeliest).mean())


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a text that a row is fed.

    Attributes
    ----------
    ids : sequence of int
        Its tokens.
    known : int
        How many of them only serve as context, at least 1; the others are scored.
    place : int
        Where the first score belongs among those of all texts.
    """

    ids: Sequence[int]
    known: int
    place: int


def windows_of(texts: Sequence[Sequence[int]], *, window: int, stride: int) -> Iterator[Window]:
    """Cut texts into windows, each `stride` tokens after the one before, that score every token but the first once.

    A text's first window scores all of its tokens, the early ones with little before them, as at the beginning of any
    text. Each later one scores only what no window before it has, so at least `window - stride` tokens precede that.
    """
    place = 0
    for ids in texts:
        scored = 1
        for begin in range(0, len(ids), stride):
            end = min(begin + window, len(ids))
            yield Window(ids[begin:end], scored - begin, place)
            place += end - scored
            scored = end
            if end == len(ids):
                break


def perplexity_of(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    stride: int | None = None,
    watch: Watch | None = None,
) -> Perplexity:
    """Measure how well a model foretells texts.

    All free rows of the engine work together, a window each. The result does not depend on how many there are.

    Parameters
    ----------
    texts : sequence of sequences of int
        The token ids of each, at least two.
    window : int, optional
        Tokens that the model sees at most, the one to be scored included; 512, or what a row holds, if not given.
    stride : int, optional
        How far windows lie apart, see `windows_of`; half a window if not given. Fewer give every token more context,
        and take longer.
    watch : callable, optional
        Called with the tokens scored and to be scored, after each step.

    Raises
    ------
    RequestError
        If there is no text, one is too short or holds a token that the model does not know, or window and stride make
        no sense.
    LogitsError
        If the model gives no distribution.
    NoFreeRows
        If no row is free.
    """
    cache = engine.kv_cache
    window = min(WINDOW, cache.capacity) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    _check(engine, texts, window, stride)
    waiting = deque(windows_of(texts, window=window, stride=stride))
    total, done = sum(len(ids) - 1 for ids in texts), 0
    nats, likeliest = np.empty(total, np.float64), np.empty(total, np.int64)
    began = time.perf_counter()
    rows = cache.acquire(max(1, min(cache.free, len(waiting))))
    try:
        for row in rows:
            engine.set_adapter(row, None)
        fed: dict[int, tuple[Window, int]] = {}  # by row: its window, and how many tokens of that it holds
        while waiting or fed:
            idle = [row for row in rows if row not in fed][: len(waiting)]
            for row in idle:
                begun = waiting.popleft()
                cache.truncate(row, 0)
                engine.write_prompt(row, begun.ids[: begun.known])
                fed[row] = begun, begun.known
            if idle:
                engine.prefill(idle)
            done += len(fed)
            for row, (one, count) in list(fed.items()):
                place = one.place + count - one.known
                nats[place], likeliest[place] = _surprise(engine.read_logits(row), one.ids[count])
                if count + 1 == len(one.ids):
                    del fed[row]
                    continue
                engine.write_token(row, one.ids[count])
                fed[row] = one, count + 1
            if fed:
                engine.decode(list(fed))
            if watch is not None:
                watch(done, total)
    finally:
        cache.release(rows)
    return Perplexity(nats, likeliest, time.perf_counter() - began)


def own_texts(
    engine: Engine, tokens: int, *, start: int, length: int, seed: int = 0, watch: Watch | None = None
) -> list[list[int]]:
    """Have a model write texts itself, at temperature 1: for one that has no text of its own.

    What it is surprised by in them is the entropy of its own distribution, in the mean; what another model is surprised
    by more is the Kullback-Leibler divergence of the two.

    Parameters
    ----------
    tokens : int
        How many it draws, all texts together.
    start : int
        The token that each text begins with.
    length : int
        Tokens that a text has at most.
    seed : int
        The same one gives the same texts, on any number of rows.
    watch : callable, optional
        Called with the tokens drawn and to be drawn, after each step.
    """
    cache = engine.kv_cache
    if tokens < 1 or not 2 <= length <= cache.capacity:
        raise RequestError(
            f"{tokens} tokens in texts of up to {length} were to be drawn: expected at least 1 in texts of 2 to "
            f"{cache.capacity}, which a row holds"
        )
    sizes = [min(length - 1, tokens - first) for first in range(0, tokens, length - 1)]
    texts: list[list[int]] = []
    rows, done = cache.acquire(max(1, min(cache.free, len(sizes)))), 0
    try:
        for first in range(0, len(sizes), len(rows)):
            batch = sizes[first : first + len(rows)]
            writing = rows[: len(batch)]
            for row, number in zip(writing, range(first, len(sizes)), strict=False):
                cache.truncate(row, 0)
                engine.set_adapter(row, None)
                engine.set_sampling(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed + number)
                engine.write_prompt(row, [start])
            engine.prefill(writing)
            drawn = []
            for step in range(max(batch)):
                if step:
                    engine.decode(writing)
                engine.sample(writing)
                drawn.append(engine.sampled(writing))
                done += sum(step < size for size in batch)
                if watch is not None:
                    watch(done, tokens)
            texts += [[start, *ids[:size]] for ids, size in zip(zip(*drawn, strict=True), batch, strict=True)]
    finally:
        cache.release(rows)
    return texts


def _surprise(logits: npt.NDArray[np.float32], token: int) -> tuple[float, int]:
    """Give the surprise at a token in nats, by a softmax in float64, and the likeliest token."""
    likeliest = int(logits.argmax())
    with np.errstate(invalid="ignore"):
        shares = np.subtract(logits, logits[likeliest], dtype=np.float64)
        below = float(shares[token])
        total = float(np.exp(shares, out=shares).sum())
    if not total < np.inf:  # NaN is not
        raise LogitsError("the model gives no distribution: its logits hold NaN or +inf, or are all -inf")
    return math.log(total) - below, likeliest


def _check(engine: Engine, texts: Sequence[Sequence[int]], window: int, stride: int) -> None:
    if not 2 <= window <= engine.kv_cache.capacity:
        raise RequestError(
            f"a window of {window} tokens was asked for: expected 2 to {engine.kv_cache.capacity}, which a row holds"
        )
    if not 1 <= stride < window:
        raise RequestError(
            f"a stride of {stride} was asked for: expected 1 to {window - 1}, for at least one token of the window of "
            f"{window} must be context"
        )
    if not texts:
        raise RequestError("there is no text to measure perplexity on")
    for number, ids in enumerate(texts):
        if len(ids) < 2:
            raise RequestError(
                f"text {number} has {len(ids)} token{'' if len(ids) == 1 else 's'}: expected at least 2, for only what "
                f"another token precedes can be foretold"
            )
        if min(ids) < 0 or max(ids) >= engine.model.vocab:
            raise RequestError(
                f"text {number} holds tokens from {min(ids)} to {max(ids)}, the model knows 0 to "
                f"{engine.model.vocab - 1}: its tokenizer belongs to another model"
            )
