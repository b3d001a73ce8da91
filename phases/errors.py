"""What a user can do wrong when asking for text."""


class RequestError(ValueError):
    """A request that cannot be run as it is; the message says what was expected, what came and what to do."""


class ConstraintError(ValueError):
    """What a row is constrained to be can come of none of the tokens that there are."""


class IgnoredSettings(UserWarning):
    """A checkpoint asks for what nobody here heeds."""


class PromptTooLong(RequestError):
    """A prompt that leaves no room to generate; it knows what would make room."""

    def __init__(self, row: int, *, tokens: int, capacity: int, positions: int) -> None:
        self._row = row
        self._tokens = tokens
        self._capacity = capacity
        self._positions = positions
        super().__init__(self.told("the capacity"))

    def told(self, option: str) -> str:
        """The message, for those who set the capacity by an option of this name."""
        more = f" or raise {option} (the model has {self._positions} positions)"
        return (
            f"row {self._row} has {self._tokens} prompt tokens, but the capacity is {self._capacity} tokens, prompt "
            f"and output together; shorten the prompt by {self._tokens - self._capacity + 1} tokens"
            f"{more if self._capacity < self._positions else ''}"
        )


class PromptCacheWarning(UserWarning):
    """Something of a prompt cache's folder is ignored, or cannot be kept; what it was to save is computed."""
