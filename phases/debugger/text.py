"""Tokens as text: what a row says so far, how a token is called, what came of a step in words."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from phases.context import Generation
from phases.token_ids import tokens_of
from phases.views.token_text import UNKNOWN
from statemachine import Step


@dataclass(frozen=True, slots=True)
class Text:
    """A row's text so far; where there is no tokenizer, token ids stand for it."""

    prompt: str
    before: str
    last: str  # what the last token added
    last_id: int | None = None
    pending: bool = False  # the last token was drawn, but CheckStop has not entered it yet
    recorded: str = ""  # the whole output text, where a record tells it


def text_of(context: Generation, row: int, recorded: str = "") -> Text:
    """The text of a row."""
    if not context.prompt_ids:
        return Text("", "", "")
    prompt, tokens = context.prompt_ids[row], context.tokens(row)
    output = tokens[len(prompt) :]
    pending = len(output) > len(context.output_ids[row])
    last = output[-1] if output else None
    if context.tokenizer is None:
        before = " ".join(map(str, output[:-1]))
        shown = "" if last is None else str(last)
        return Text(" ".join(map(str, prompt)), before + " " * bool(before), shown, last, pending, recorded)
    whole, before = decoded(context, output), decoded(context, output[:-1])
    while not whole.startswith(before):  # bytes that only this token made a character of
        before = before[:-1]
    added = whole[len(before) :]
    shown = added if added or last is None else label(context, row, last)
    return Text(decoded(context, prompt), before, shown, last, pending)


def decoded(context: Generation, ids: Sequence[int]) -> str:
    """The text of tokens; their ids, where there is no tokenizer or it does not know them, as a record can hold any."""
    if context.tokenizer is not None:
        with suppress(*UNKNOWN):
            return context.tokenizer.decode(ids)
    return " ".join(map(str, ids))


def piece(context: Generation, token: int) -> str:
    """The text of one token; "" for a special token, and where no tokenizer knows it."""
    with suppress(*UNKNOWN):
        return context.tokenizer.decode((token,)) if context.tokenizer else ""
    return ""


def label(context: Generation, row: int, token: int) -> str:
    """How a token is called: its text in quotes, or its number if it is no text of its own."""
    if (text := piece(context, token)) and "\ufffd" not in text:
        return repr(text)
    stops = context.request.requests[row].params.stop_token_ids or ()
    return f"<stop {token}>" if token in stops else f"<{token}>"


def words_of(context: Generation, row: int, step: Step) -> str:
    """What came of a step."""
    outcome = step.outcome
    if step.phase == "tokenize" and isinstance(outcome, Sequence):
        return f"{sum(len(ids) for ids in outcome)} prompt tokens"
    if step.phase in ("sample", "check_stop") and outcome:
        tokens = tokens_of(outcome)
        return " ".join(f"token {token} {label(context, row, token)}".removesuffix(f" <{token}>") for token in tokens)
    if step.phase in ("prefill", "decode") and isinstance(outcome, Sequence):
        return f"{' '.join(map(str, outcome))} cached" if outcome else ""
    return ""
