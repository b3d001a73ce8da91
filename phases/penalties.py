"""What a row's parameters ask of its engine: penalties on the logits that its tokens are drawn from."""

from typing import TYPE_CHECKING

from phases.errors import RequestError
from phases.request import SamplingParams

if TYPE_CHECKING:
    from gpu import Penalties


def penalties_of(params: SamplingParams, *, prompt: int, vocab: int) -> "Penalties":
    """The penalties of a row whose prompt has so many tokens."""
    from gpu import Penalties  # a record is played without

    return Penalties(
        repetition=params.repetition_penalty or 1.0,
        presence=params.presence_penalty or 0.0,
        frequency=params.frequency_penalty or 0.0,
        no_repeat_ngram=params.no_repeat_ngram_size or 0,
        bias=tuple(dict(params.logit_bias or ()).items()),
        forbidden=params.forbidden_token_ids or (),
        allowed=params.allowed_token_ids or None,
        stops=tuple(token for token in params.stop_token_ids or () if token < vocab),
        min_new_tokens=params.min_new_tokens or 0,
        output_from=prompt,
    )


def looks_back(params: SamplingParams) -> bool:
    """Whether it matters for the next token which ones came before, other than to the model."""
    return (
        params.repetition_penalty not in (None, 1.0)
        or bool(params.presence_penalty or params.frequency_penalty)
        or bool(params.no_repeat_ngram_size)
    )


def check_tokens(params: SamplingParams, *, row: int, vocab: int) -> None:
    """Raise RequestError if the parameters of a row name tokens that the model does not know, or too many stops."""
    from gpu.penalties import MOST_STOPS

    named = {
        "logit_bias": tuple(dict(params.logit_bias or ())),
        "allowed_token_ids": params.allowed_token_ids or (),
        "forbidden_token_ids": params.forbidden_token_ids or (),
    }
    for name, ids in named.items():
        if ids and max(ids) >= vocab:
            raise RequestError(
                f"{name} of row {row} names token id {max(ids)}, but the model's vocabulary ends at {vocab - 1}"
            )
    stops = params.stop_token_ids or ()
    if params.min_new_tokens and len(stops) > MOST_STOPS:
        raise RequestError(
            f"row {row} has {len(stops)} stop tokens, but min_new_tokens can hold back {MOST_STOPS}: leave some out"
        )
