"""Why a run failed: in a line, and whole, as far as anybody would read it."""

import traceback
from dataclasses import dataclass

from statemachine import PhaseError

FRAMES, LONGEST = 12, 2000  # frames of a traceback, the last ones; characters of one of its lines


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in a phase."""

    message: str  # on one line
    lines: tuple[str, ...]  # its whole message, and the last frames of its traceback

    @classmethod
    def of(cls, error: PhaseError) -> "Failure":
        """What there is to say of a failed phase."""
        cause = error.__cause__ or error
        told = traceback.TracebackException.from_exception(cause, limit=-FRAMES)
        message = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        lines = "".join(told.format()).splitlines()
        return cls(
            message if len(message) <= LONGEST else message[:LONGEST] + "…",
            (f"phase {error.phase!r} failed at step {error.step}", "", *(_cut(line) for line in lines)),
        )


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}… {len(line)} characters"
