"""What an exception becomes for which the table has a way: the outcome of a step, recorded and entered like others."""

from dataclasses import dataclass

from statemachine.errors import message_of

LONGEST = 5_000  # characters of a message that are kept


@dataclass(frozen=True, slots=True)
class Raised:
    """What a phase raised.

    Attributes
    ----------
    way
        The name of the class that the table lists.
    exception
        The name of the exception's own class, which may be a subclass of it.
    message
        What the exception says, its first 5,000 characters.
    """

    way: str
    exception: str
    message: str

    @classmethod
    def of(cls, way: str, error: Exception) -> "Raised":
        """What an exception comes to that takes the way of this class."""
        name, message = (
            text[:LONGEST].encode(errors="backslashreplace").decode()
            for text in (type(error).__name__, message_of(error))
        )
        return cls(way, name[:1000], message[:LONGEST])

    def __str__(self) -> str:
        return f"{self.exception}: {self.message}" if self.message else self.exception
