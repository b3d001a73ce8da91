"""What a debugger refuses to do."""


class DebuggerError(ValueError):
    """A command that makes no sense here; the message says what was expected."""
