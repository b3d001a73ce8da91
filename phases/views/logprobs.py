"""The log-probabilities of a result: as JSON, and as lines for a person."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phases.logprobs import TokenLogprob
    from phases.request import GenerationResult
    from phases.tokenizer import Tokenizer

Found = Sequence["TokenLogprob | None"]


def as_json(tokenizer: "Tokenizer", result: "GenerationResult", row: int) -> dict[str, Any]:
    """What a row asked for, by the name of the option that asks for it."""
    asked = {"logprobs": result.logprobs[row], "prompt_logprobs": result.prompt_logprobs[row]}
    return {name: [_token(tokenizer, one) for one in found] for name, found in asked.items() if found is not None}


def lines(tokenizer: "Tokenizer", result: "GenerationResult") -> Iterator[str]:
    """A line a token: its log-probability, its text, and the likeliest tokens with theirs."""
    for row in range(len(result.output_ids)):
        for name, asked in (("prompt", result.prompt_logprobs[row]), ("output", result.logprobs[row])):
            for one in asked or ():
                if one is None:
                    continue
                top = " · ".join(f"{tokenizer.decode_token(token)!r} {logprob:.4f}" for token, logprob in one.top)
                of_row = f"[row {row}] " if len(result.output_ids) > 1 else ""
                text = repr(tokenizer.decode_token(one.token_id))
                yield f"{of_row}{name} {one.logprob:10.4f}  {text:<16} {top}".rstrip()


def _token(tokenizer: "Tokenizer", one: "TokenLogprob | None") -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "token_id": one.token_id,
        "text": tokenizer.decode_token(one.token_id),
        "logprob": one.logprob,
        "top": [
            {"token_id": token, "text": tokenizer.decode_token(token), "logprob": logprob} for token, logprob in one.top
        ],
    }
