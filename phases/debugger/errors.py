"""What a debugger refuses to do, and the errors of others that say well enough what is wrong."""

from gpu import CapacityError, LogitsError, NoFreeRows
from statemachine import StateMachineError


class DebuggerError(ValueError):
    """A command that makes no sense here; the message says what was expected."""


TELLING = (ValueError, OSError, StateMachineError, NoFreeRows, CapacityError, LogitsError)
