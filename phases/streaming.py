"""Text as it comes: in whole characters, by row; and how a run is cancelled."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Self

from phases.context import Generation
from phases.tokenizer import TextStream
from statemachine import IllegalMove, Run


class TextPiece(str):
    """A piece of streamed text, and the row of the request that it belongs to."""

    __slots__ = ("row",)
    row: int

    def __new__(cls, text: str, row: int = 0) -> Self:
        piece = super().__new__(cls, text)
        piece.row = row
        return piece


def fresh_pieces(context: Generation, streams: list[TextStream]) -> Iterator[TextPiece]:
    """The text that the tokens of the last CheckStop complete."""
    for row, stream in enumerate(streams):
        ids = context.output_ids[row]
        piece = "".join(stream.push(token) for token in ids[stream.count :])
        if row not in context.live:
            piece += stream.finish()
        if piece:
            yield TextPiece(piece, row)


def cancel(run: Run[Generation]) -> None:
    """Cancel a run unless it has ended."""
    with suppress(IllegalMove):  # it may end between the question and the signal
        if not run.status.ended:
            run.signal("cancel")
