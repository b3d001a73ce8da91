"""What a debugger refuses to do, and the errors of others that say well enough what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

from gpu import CapacityError, LogitsError, NoFreeRows
from phases.debugger.values import short
from statemachine import StateMachineError


class DebuggerError(ValueError):
    """A command that makes no sense here; the message says what was expected."""


TELLING = (ValueError, OSError, StateMachineError, NoFreeRows, CapacityError, LogitsError)


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Whatever a machine's own code raises, as a DebuggerError; errors that tell what is wrong pass as they are."""
    try:
        yield
    except TELLING:
        raise
    except Exception as error:
        raise DebuggerError(f"{what} failed: {type(error).__name__}: {short(str(error), 500)}") from error
