"""What a user can do wrong when asking for text."""


class RequestError(ValueError):
    """A request that cannot be run as it is; the message says what was expected, what came and what to do."""
