"""The values of the names in conditions, at the place where a generation rests."""

from typing import Any

from phases.context import Generation
from phases.debugger.distribution import NoDistribution, Spread, spread
from phases.debugger.text import decoded, piece
from statemachine import Run


class Names:
    """Values for one row, each found out when it is asked for."""

    def __init__(self, run: Run[Generation], row: int) -> None:
        self._run, self._row = run, row
        self._spread: Spread | None = None

    def __call__(self, name: str) -> Any:
        context = self._run.context
        output = context.output_ids[self._row]
        match name:
            case "step":
                return self._run.step_count
            case "phase":
                return self._run.phase.name
            case "length":
                return len(output)
            case "token_id":
                return output[-1] if output else None
            case "token":
                return piece(context, output[-1]) if output and context.tokenizer else None
            case "text":
                return decoded(context, output) if context.tokenizer else None
        if self._spread is None:
            try:
                self._spread = spread(context, self._row)
            except NoDistribution:
                return None
        return getattr(self._spread, name)

    def before(self, name: str) -> Any:
        """The same, but of the text without its last token: so that a text is told from one that just came to hold."""
        context = self._run.context
        if name == "text" and context.tokenizer:
            return decoded(context, context.output_ids[self._row][:-1])
        return self(name)


def token_settled(run: Run[Generation]) -> bool:
    """Whether a token is about to be drawn, or the last one has just been checked: once a token, that is."""
    if "sample" not in run.machine.phases:
        return True
    last = next(run.steps(run.step_count - 1))
    return run.phase.name == "sample" or (last.phase == "check_stop" and not run.context.live)
