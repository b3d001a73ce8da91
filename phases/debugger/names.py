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
        match name:
            case "step":
                return self._run.step_count
            case "phase":
                return self._run.phase.name
            case "length" | "token_id" | "token" | "text":
                return self._of_output(name, self._run.context.output_ids[self._row])
        if self._spread is None:
            try:
                self._spread = spread(self._run.context, self._row)
            except NoDistribution:
                return None
        return getattr(self._spread, name)

    def before(self, name: str) -> Any:
        """What it was before the last token, as far as the output alone tells."""
        output = self._run.context.output_ids[self._row]
        return self._of_output(name, output[:-1]) if name in ("length", "token_id", "token", "text") else None

    def _of_output(self, name: str, output: list[int]) -> Any:
        context = self._run.context
        match name:
            case "length":
                return len(output)
            case "token_id":
                return output[-1] if output else None
            case "token":
                return piece(context, output[-1]) if output and context.tokenizer else None
        return decoded(context, output) if context.tokenizer else None


def token_settled(run: Run[Generation]) -> bool:
    """Whether a token is about to be drawn, or the last one has just been checked: once a token, that is."""
    if "sample" not in run.machine.phases:
        return True
    last = next(run.steps(run.step_count - 1))
    return run.phase.name == "sample" or (last.phase == "check_stop" and not run.context.live)
