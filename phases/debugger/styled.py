"""Styled text for panels: fitted to the room that there is, and without a control code of the model's in it."""

import re

from rich.cells import cell_len
from textual.content import Content

from phases.debugger.cells import fitted

Part = tuple[str, str]  # text and its style

LOOKS = {
    "": "$foreground", "lit": "bold auto on $accent", "box": "bold $accent", "taken": "bold $text-success",
    "count": "$text-warning", "dim": "$foreground 45%", "stop": "bold $text-error",
}  # fmt: skip
DIM, STRONG = "$foreground 55%", "bold $foreground"
EIGHTHS = " ▏▎▍▌▋▊▉█"
CONTROLS = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def visible(text: str) -> str:
    """Text with every control code but the end of a line as a visible sign: a model's text is not to be trusted."""
    return CONTROLS.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else "\ufffd", text)


def lines(*made: list[Part]) -> Content:
    """Lines of styled text; nothing in them is read as markup."""
    return Content("\n").join(
        Content.assemble(*(Content.styled(visible(text), style) for text, style in line)) for line in made
    )


def percent(share: float) -> str:
    """A probability in at most six characters."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.9995 else "100%"


def bar_of(share: float, width: int) -> str:
    """A bar of this share of the width, in eighths of a character, filled up with spaces; something shows at least."""
    eighths = max(1 if share > 0 else 0, round(min(share, 1) * width * 8))
    whole, rest = divmod(eighths, 8)
    return (EIGHTHS[8] * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def as_many(words: list[str], width: int) -> str:
    """As many of these words as fit, two spaces between them where there is room."""
    for between in ("  ", " "):
        if len(between.join(words)) <= width:
            return between.join(words)
    return as_many(words[:-1], width) if len(words) > 1 else words[0][:width]


def cut(parts: list[Part], width: int) -> list[Part]:
    """A line of styled text in at most so many cells."""
    made: list[Part] = []
    for text, style in parts:
        room = width - sum(cell_len(before) for before, _ in made)
        if cell_len(text) > room:
            return [*made, (fitted(text, room), style)]
        made.append((text, style))
    return made


def tail(text: str, length: int) -> str:
    """The end of a long text, with a sign that there is more before it."""
    return text if len(text) <= length else f"…{text[-length:]}"
