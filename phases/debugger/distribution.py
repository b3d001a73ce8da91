"""What a row's next token is, or was, drawn from: every likely token, its probability, and what took it out."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu import LogitsError
from gpu.sampling import candidates
from phases.context import Generation

MOST = 64  # candidates that are listed


class NoDistribution(Exception):
    """There are no logits to speak of here; the message says why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could come next."""

    token_id: int
    logit: float
    probability: float | None  # softmax of the logits, before temperature; None: the record does not tell
    chance: float = 0.0  # with which it is drawn, after temperature and all cuts
    removed: str = ""  # what took it out: "temperature", "top-k", "top-p", "min-p" or "masked"


@dataclass(frozen=True, slots=True)
class Spread:
    """How sure the model is of the token, before temperature."""

    top1: float
    margin: float
    entropy: float  # bits


@dataclass(frozen=True, slots=True)
class Distribution:
    """The candidates for one token of the output, likeliest first."""

    place: int  # of the token in the row's output, from 0
    drawn: int | None  # what came of it, if that is known
    forced: int | None  # what will come of it whatever is drawn
    candidates: tuple[Candidate, ...]
    spread: Spread | None
    kept: int  # tokens that can be drawn
    vocab: int


def distribution(context: Generation, row: int) -> Distribution:
    """The distribution that the engine's logits stand for.

    These are the logits behind the last token in the cache, so they belong to the place in the output that follows
    it: the next token before Sample; the token just drawn before Decode; the one after that once Decode has run.

    Raises
    ------
    NoDistribution
        Where there are no logits, or they cannot be drawn from.
    """
    logits = _logits(context, row)
    place = context.cached[row] - len(context.prompt_ids[row])
    params = context.request.requests[row].params
    temperature, top_k, top_p, min_p = params.temperature or 0.0, params.top_k or 0, params.top_p or 1.0, params.min_p
    cuts: list[tuple[str, dict[str, Any]]] = [("temperature", {"top_k": 0, "top_p": 1.0, "min_p": 0.0})]
    if temperature and 0 < top_k < len(logits):
        cuts.append(("top-k", {"top_k": top_k, "top_p": 1.0, "min_p": 0.0}))
    if temperature and top_p < 1:
        cuts.append(("top-p", {"top_k": top_k, "top_p": top_p, "min_p": 0.0}))
    if temperature and min_p:
        cuts.append(("min-p", {"top_k": top_k, "top_p": top_p, "min_p": min_p}))
    removed = np.zeros(len(logits), np.int8)  # by token id: the number of the cut that took it out, 0 for none
    for number, (_, cut) in enumerate(cuts, start=1):
        left = candidates(logits, temperature=temperature, **cut)
        gone = np.ones(len(logits), bool)
        gone[left.token_ids] = False
        removed[gone & (removed == 0)] = number
    chances = dict(zip(left.token_ids.tolist(), (left.weights / left.weights.sum()).tolist(), strict=True))
    probabilities = _softmax(logits)
    tokens = _output(context, row)
    drawn = tokens[place] if place < len(tokens) else None
    forced = context.forced[row].get(place) if drawn is None else None
    shown = _likeliest(logits, MOST)
    shown += [token for token in (drawn, forced) if token is not None and token not in shown]
    listed = tuple(
        Candidate(
            token, float(logits[token]), float(probabilities[token]), chances.get(token, 0.0),
            "masked" if logits[token] == -np.inf else ("", *(name for name, _ in cuts))[removed[token]],
        )
        for token in shown
    )  # fmt: skip
    return Distribution(place, drawn, forced, listed, _spread(probabilities), len(chances), len(logits))


def spread(context: Generation, row: int) -> Spread:
    """How sure the model is here; raises NoDistribution as `distribution` does."""
    return _spread(_softmax(_logits(context, row)))


def _logits(context: Generation, row: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    if context.engine is None:
        raise NoDistribution("not recorded")
    if not context.prompt_filled(row):
        raise NoDistribution("no logits yet: Prefill makes the first")
    if row not in context.live:
        raise NoDistribution(f"row {row} has ended: nothing more is drawn")
    context.fresh_logits()
    logits = context.engine.read_logits(context.slots[row])
    try:
        candidates(logits, temperature=0, top_k=0, top_p=1, min_p=0)
    except LogitsError as error:
        raise NoDistribution(str(error)) from error
    return logits


def _output(context: Generation, row: int) -> list[int]:
    """The row's output, a token that was just drawn included."""
    return context.tokens(row)[len(context.prompt_ids[row]) :]


def _softmax(logits: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
    powers: np.ndarray[Any, np.dtype[np.float64]] = np.exp(logits.astype(np.float64) - float(logits.max()))
    powers /= powers.sum()
    return powers


def _spread(probabilities: "np.ndarray[Any, np.dtype[np.float64]]") -> Spread:
    top = np.sort(np.partition(probabilities, -2)[-2:]) if len(probabilities) > 1 else np.array([0.0, 1.0])
    positive = probabilities[probabilities > 0]
    return Spread(float(top[1]), float(top[1] - top[0]), float(-(positive * np.log(positive)).sum() / math.log(2)))


def _likeliest(logits: "np.ndarray[Any, np.dtype[np.float32]]", count: int) -> list[int]:
    count = min(count, len(logits))
    ids = np.argpartition(logits, -count)[-count:]
    return [int(token) for token in ids[np.lexsort((ids, -logits[ids]))]]


def recorded_distribution(context: Generation, row: int, digest: Any) -> Distribution:
    """What a digest in a journal tells of the logits of this place: the largest of them."""
    found = next((entry for entry in digest or () if isinstance(entry, dict) and entry.get("row") == row), None)
    if found is None or not {"ids", "logits"} <= found.keys():
        raise NoDistribution("not recorded: phasewalk run --digest-every 1 records the likeliest tokens")
    place = context.cached[row] - len(context.prompt_ids[row])
    tokens = _output(context, row)
    listed = tuple(
        Candidate(int(token), float("-inf") if logit is None else float(logit), None)
        for token, logit in zip(found["ids"], found["logits"], strict=False)
    )
    drawn = tokens[place] if place < len(tokens) else None
    return Distribution(place, drawn, context.forced[row].get(place) if drawn is None else None, listed, None, 0, 0)
