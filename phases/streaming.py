"""Text as it comes: in whole characters, by row; and how a run is cancelled."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

from phases.context import Generation
from phases.request import SamplingParams
from phases.stop_strings import beginning
from phases.tokenizer import TextStream, Tokenizer
from statemachine import IllegalMove, Run


class TextPiece(str):
    """A piece of streamed text, and the row of the request that it belongs to."""

    __slots__ = ("row",)
    row: int

    def __new__(cls, text: str, row: int = 0) -> Self:
        piece = super().__new__(cls, text)
        piece.row = row
        return piece


class RowText:
    """The text of a row as it may be shown: what may be the beginning of a stop string waits until it is none."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._stream = TextStream(tokenizer)
        self._stops = () if params.keep_stop else params.stop or ()
        self._given = 0  # characters
        self._waiting = ""

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
        piece = text.fresh(context.output_ids[row], ended=row not in context.live, kept=context.kept_text[row])
        if piece:
            yield TextPiece(piece, row)


def cancel(run: Run[Generation]) -> None:
    """Cancel a run unless it has ended."""
    with suppress(IllegalMove):  # it may end between the question and the signal
        if not run.status.ended:
            run.signal("cancel")
