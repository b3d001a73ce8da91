"""Text as it comes: in whole characters, by row; and how a run is cancelled."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

from phases.context import Generation
from phases.logprobs import TokenLogprob
from phases.request import FinishReason, SamplingParams
from phases.result import finish_reason
from phases.stop_strings import beginning
from phases.tokenizer import TextStream, Tokenizer
from statemachine import IllegalMove, Run


class TextPiece(str):
    """A piece of streamed text, and the row of the request that it belongs to.

    Attributes
    ----------
    logprobs : tuple of TokenLogprob
        Of the tokens that came since the last piece of the row, if it asks for them; text of theirs may still be held
        back.
    finish_reason : FinishReason, optional
        Of the last piece of a row, why the row ended; None of all others. The last piece may have no text.
    """

    __slots__ = ("finish_reason", "logprobs", "row")
    row: int
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None

    def __new__(
        cls, text: str, row: int = 0, logprobs: tuple[TokenLogprob, ...] = (), finish_reason: FinishReason | None = None
    ) -> Self:
        piece = super().__new__(cls, text)
        piece.row, piece.logprobs, piece.finish_reason = row, logprobs, finish_reason
        return piece


class RowText:
    """The text of a row as it may be shown: what may be the beginning of a stop string waits until it is none."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._stream = TextStream(tokenizer)
        self._stops = () if params.keep_stop else params.stop or ()
        self._given = 0  # characters
        self._waiting = ""
        self.told = 0  # tokens whose log-probabilities have been given
        self.over = False  # the last piece was given

    def fresh(self, ids: Sequence[int], *, ended: bool, kept: int | None) -> str:
        """What can be shown now that the output is `ids`; in the end all the rest, of which so many characters stay."""
        text = self._waiting + "".join(self._stream.push(token) for token in ids[self._stream.count :])
        if ended:
            text = (text + self._stream.finish())[: None if kept is None else kept - self._given]
        piece = text[: len(text) - (0 if ended else beginning(text, self._stops))]
        self._waiting = text[len(piece) :]
        self._given += len(piece)
        return piece


def fresh_pieces(run: Run[Generation], texts: list[RowText]) -> Iterator[TextPiece]:
    """The text that the tokens of the last CheckStop complete, and a last piece of each row that ended."""
    context = run.context
    for row, text in enumerate(texts):
        if text.over:
            continue
        reason, ids = finish_reason(run, row), context.output_ids[row]
        piece = text.fresh(ids, ended=reason is not None, kept=context.kept_text[row])
        if piece or reason is not None:
            found = (context.logprobs[row].get(place) for place in range(text.told, len(ids)))
            text.told, text.over = len(ids), reason is not None
            yield TextPiece(piece, row, tuple(logprob for logprob in found if logprob is not None), reason)


def cancel(run: Run[Generation]) -> None:
    """Cancel a run unless it has ended."""
    with suppress(IllegalMove):  # it may end between the question and the signal
        if not run.status.ended:
            run.signal("cancel")
