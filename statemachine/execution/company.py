"""Company: in an ensemble, who does a phase's work for a run is not the run itself."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol, TypeVar

from statemachine.definition.program import Program, Row

Context = TypeVar("Context")


class Company(Protocol):
    """Does the work of phases for runs that are driven in it."""

    def rows(self, program: Program[Context]) -> Sequence[Row[Context]]:
        """The rows of a program, with the work of some phases replaced."""
        ...

    def __len__(self) -> int:
        """How many runs share the thread's time."""
        ...


current: ContextVar[Company | None] = ContextVar("company", default=None)


def rows_of(program: Program[Context]) -> Sequence[Row[Context]]:
    """The rows by which a run is driven here."""
    company = current.get()
    return program.rows if company is None else company.rows(program)


def size() -> int:
    """How many runs share the time of a run that is driven here, itself included."""
    company = current.get()
    return 1 if company is None else max(1, len(company))
