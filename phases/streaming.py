"""Text as it comes: in whole characters, by row; and how a run is cancelled."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

from phases.context import Generation
from phases.logprobs import TokenLogprob
from phases.request import SamplingParams
from phases.stop_strings import beginning
from phases.tokenizer import TextStream, Tokenizer
from statemachine import IllegalMove, Run


class TextPiece(str):
    """A piece of streamed text, and the row of the request that it belongs to.

    Attributes
    ----------
    logprobs : tuple of TokenLogprob
        Of the tokens that came since the last piece of the row, if it asks for them; text of theirs may still be held
        back. The last piece of such a row may have no text, but those of the tokens that end it.
    """

    __slots__ = ("logprobs", "row")
    row: int
    logprobs: tuple[TokenLogprob, ...]

    def __new__(cls, text: str, row: int = 0, logprobs: tuple[TokenLogprob, ...] = ()) -> Self:
        piece = super().__new__(cls, text)
        piece.row, piece.logprobs = row, logprobs
        return piece


class RowText:
    """The text of a row as it may be shown: what may be the beginning of a stop string waits until it is none."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._stream = TextStream(tokenizer)
        self._stops = () if params.keep_stop else params.stop or ()
        self._given = 0  # characters
        self._waiting = ""
        self.told = 0  # tokens whose log-probabilities have been given

    def fresh(self, ids: Sequence[int], *, ended: bool, kept: int | None) -> str:
        """What can be shown now that the output is `ids`; in the end all the rest, of which so many characters stay."""
        text = self._waiting + "".join(self._stream.push(token) for token in ids[self._stream.count :])
        if ended:
            text = (text + self._stream.finish())[: None if kept is None else kept - self._given]
        piece = text[: len(text) - (0 if ended else beginning(text, self._stops))]
        self._waiting = text[len(piece) :]
        self._given += len(piece)
        return piece


def fresh_pieces(context: Generation, texts: list[RowText]) -> Iterator[TextPiece]:
    """The text that the tokens of the last CheckStop complete."""
    for row, text in enumerate(texts):
        ended = row not in context.live
        piece = text.fresh(context.output_ids[row], ended=ended, kept=context.kept_text[row])
        scored = text.told < len(context.output_ids[row]) and ended and bool(context.logprobs[row])
        if piece or scored:
            places = range(text.told, len(context.output_ids[row]))
            found = (context.logprobs[row].get(place) for place in places)
            text.told = len(context.output_ids[row])
            yield TextPiece(piece, row, tuple(logprob for logprob in found if logprob is not None))


def cancel(run: Run[Generation]) -> None:
    """Cancel a run unless it has ended."""
    with suppress(IllegalMove):  # it may end between the question and the signal
        if not run.status.ended:
            run.signal("cancel")
