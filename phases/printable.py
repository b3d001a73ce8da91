"""Text from elsewhere as a terminal may have it: what would steer the terminal is shown, not obeyed."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but tab and newline


def printable(text: str) -> str:
    r"""The text with its control characters escaped (`\x1b`), newlines and tabs left as they are."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: object, limit: int = 200) -> str:
    """The text on one line: what no terminal should obey escaped, as in `repr`, and cut after `limit` characters."""
    whole = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:limit])
    return shown if len(whole) <= limit else f"{shown} ... ({len(whole)} characters)"
