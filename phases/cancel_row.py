"""CancelRow: somebody ends one row of a run; the others go on as if it had ended by itself."""

from phases.context import Generation
from phases.errors import RequestError
from phases.request import FinishReason
from statemachine import Signal


class CancelRow(Signal[Generation, int]):
    """`run.signal("cancel_row", 2)`: row 2 ends with the tokens that it has.

    It is taken where the next token of each row is about to be drawn, or the next piece of a prompt to be fed, so that
    the run stays where it is.
    """

    def apply(self, context: Generation, payload: int) -> None:
        check_live(context, payload)
        context.end(payload, FinishReason.CANCELLED)


def check_live(context: Generation, row: int) -> None:
    """Raise RequestError unless there is such a row and it has not ended."""
    if row not in context.live:
        live = ", ".join(map(str, context.live)) or "none"
        raise RequestError(f"row {row!r:.80} cannot be cancelled: rows that have not ended: {live}")
