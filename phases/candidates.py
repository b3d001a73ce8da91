"""Tells what a resting run's next token is drawn from: the likeliest tokens and their probabilities."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phases.context import Generation
from phases.errors import RequestError
from phases.tokenizer import Tokenizer
from statemachine import Run, Status


class Candidate(NamedTuple):
    """A token that could come next."""

    token_id: int
    text: str
    probability: float  # as the model gives it, before temperature and all cuts


def next_candidates(run: Run[Generation], row: int, tokenizer: Tokenizer, *, count: int) -> list[Candidate]:
    """The likeliest tokens of the logits that are there, best first; raises RequestError where there are none."""
    logits = _logits(run, row)
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    probabilities = powers / powers.sum()
    likeliest = np.lexsort((np.arange(len(logits)), -logits))[:count]  # of equals the lower id, as Sample has it
    return [
        Candidate(token, tokenizer.decode_token(token), float(probabilities[token])) for token in likeliest.tolist()
    ]


def _logits(run: Run[Generation], row: int) -> npt.NDArray[np.float32]:
    """The logits of a row, made anew if the run went back."""
    context = run.context
    if not 0 <= row < len(context.slots):
        raise RequestError(f"the run has rows 0 to {len(context.slots) - 1}, but row {row} was asked for")
    if run.status in (Status.RUNNING, Status.FAILED, Status.CANCELLED) or row not in context.live:
        raise RequestError(f"row {row} has no next token: the run is {run.status}, or the row has ended")
    if not context.prompt_filled(row):
        raise RequestError(f"row {row} has no logits yet: Prefill makes the first (run.until(sample) goes there)")
    context.fresh_logits()
    return context.bound_engine.read_logits(context.slots[row])
