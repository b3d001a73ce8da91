"""Every error the state machine raises, each saying what was expected, what came and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass


class StateMachineError(Exception):
    """Base of all errors of this package."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a table: its kind, the phase (or signal) it is about, what is wrong, what to do."""

    kind: str
    phase: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind} {self.phase!r}: {self.message}; {self.remedy}"


class InvalidMachine(StateMachineError):
    """A table that is no sound machine; `findings` holds everything that is wrong with it."""

    def __init__(self, name: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        lines = "".join(f"\n  - {finding}" for finding in self.findings)
        super().__init__(f"machine {name!r} has {len(self.findings)} finding(s):{lines}")


class GuardError(StateMachineError):
    """A guard that gave something other than True or False, a choice that gave none of its values, or one that raised.

    `expected` says what values a choice may have.
    """

    def __init__(self, guard: str, value: object, *, expected: str | None = None) -> None:
        if expected is not None:
            found = (
                f"raised {type(value).__name__}: {value}"
                if isinstance(value, BaseException)
                else f"gave {value!r} ({type(value).__name__})"
            )
            super().__init__(f"choice {guard!r} {found}; it must give {expected}")
            return
        super().__init__(
            f"guard {guard!r} raised {type(value).__name__}: {value}"
            if isinstance(value, BaseException)
            else f"guard {guard!r} must return True or False, but returned {value!r} ({type(value).__name__}); "
            f"wrap the value in bool(...) if its truth is what you mean"
        )


class IllegalMove(StateMachineError):
    """A move that the run's present status does not allow."""


def message_of(error: BaseException) -> str:
    """What an exception says, whatever it is: of one that cannot say it, what that raised."""
    try:
        return str(error)
    except Exception as odd:
        return f"(its text raised {type(odd).__name__})"


def described(error: BaseException) -> str:
    """An exception in words: its class, and what it says."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class PhaseError(StateMachineError):
    """An exception inside a phase; the original is its `__cause__`.

    The run rests, failed, at this phase, and its context is as it was before the phase: `resume` tries it again.
    """

    def __init__(self, *, run_id: str, phase: str, step: int, cause: BaseException) -> None:
        self.run_id = run_id
        self.phase = phase
        self.step = step
        super().__init__(f"run {run_id} failed in phase {phase!r} at step {step}: {described(cause)}")


class OutcomeError(StateMachineError, ValueError):
    """An outcome that no record can hold exactly, or an answer that is not of the type that its phase declares."""


class JournalError(StateMachineError):
    """A journal that cannot be written, or is damaged, or is none; names the line where there is one."""


class SnapshotError(StateMachineError):
    """A snapshot that is damaged, is none, or belongs to another machine or model; nothing was harmed."""
