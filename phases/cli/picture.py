"""What a picture of the debugger is to show: its options, checked before anything slow is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from phases.cli.files import check_new

PICTURE = "Picture"
Screenshot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.svg", help="Show nothing: press --keys, write a picture of the screen, end.",
                 rich_help_panel=PICTURE),
]  # fmt: skip
Keys = Annotated[
    str | None,
    typer.Option(metavar='"KEY KEY ..."', help='Keys to press before the picture is made, as in "n n s left".',
                 rich_help_panel=PICTURE),
]  # fmt: skip
Size = Annotated[
    str | None,
    typer.Option(metavar="COLUMNSxLINES", help="Of the screen in the picture.", show_default="120x40",
                 rich_help_panel=PICTURE),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be drawn: where to, after which keys, on a screen of which size."""

    path: Path
    keys: tuple[str, ...]
    size: tuple[int, int]


def picture_of(path: Path | None, keys: str | None, size: str | None) -> Picture | None:
    """The picture that the command line asks for."""
    measured = _size(size or "120x40")
    if path is None:
        for option, value in (("--keys", keys), ("--size", size)):
            if value is not None:
                raise typer.BadParameter("there is no picture without --screenshot FILE.svg", param_hint=option)
        return None
    check_new(path, "--screenshot")
    if path.suffix.lower() != ".svg":
        raise typer.BadParameter(
            f"{path.name!r} is no picture that can be made; endings: .svg", param_hint="--screenshot"
        )
    pressed = tuple((keys or "").split())
    if pressed:
        from phases.debugger.keys import NAMED, unknown_key

        if (unknown := unknown_key(pressed)) is not None:
            raise typer.BadParameter(
                f"there is no key {unknown!r}; keys: any one character, {', '.join(NAMED)}", param_hint="--keys"
            )
    return Picture(path, pressed, measured)


def _size(size: str) -> tuple[int, int]:
    columns, _, lines = size.partition("x")
    try:
        width, height = int(columns), int(lines)
    except ValueError:
        width = height = 0
    if not (20 <= width <= 500 and 10 <= height <= 200):
        raise typer.BadParameter(f"expected COLUMNSxLINES from 20x10 to 500x200, not {size!r}", param_hint="--size")
    return width, height
