"""Makes text from outside fit to be shown: one line, no control characters, not too long."""


def printable(text: object, limit: int = 200) -> str:
    """Give the text with what no terminal should obey escaped, as in `repr`, and cut after `limit` characters."""
    whole = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:limit])
    return shown if len(whole) <= limit else f"{shown} ... ({len(whole)} characters)"
