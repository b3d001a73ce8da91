"""Text as it comes: in whole characters, by row; and how a run is driven by a task that may be cancelled."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Self

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


async def in_thread(run: Run[Generation], work: Callable[[], Any]) -> Any:
    """Do work that drives a run in a thread; when the task is cancelled, cancel the run and wait for the thread."""
    import asyncio  # takes 40 ms, which only those who use it need wait for

    future = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel(run)
        with suppress(Exception):
            await future
        raise
