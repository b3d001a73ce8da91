"""phasewalk diagram: draw a machine."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from phases.cli.target import BUILT_IN, MachineArgument, find_machine


class Format(StrEnum):
    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    PNG = "png"


def diagram(
    machine: MachineArgument = BUILT_IN,
    format: Annotated[
        Format | None, typer.Option("--format", "-f", help="Unless given, what FILE's ending says, or mermaid.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Unless given, stdout.")] = None,
    highlight: Annotated[str | None, typer.Option(metavar="PHASE", help="Light this phase up.")] = None,
) -> None:
    """Draw a machine: as Mermaid or DOT text, or as an SVG or PNG picture (these two need Graphviz).

    phasewalk diagram -o machine.svg
    """
    import statemachine

    found = find_machine(machine)
    endings = {".dot": Format.DOT, ".gv": Format.DOT, ".svg": Format.SVG, ".png": Format.PNG}
    chosen = format or (endings.get(output.suffix.lower()) if output else None) or Format.MERMAID
    draw: dict[Format, Callable[..., str | bytes]] = {
        Format.MERMAID: statemachine.to_mermaid,
        Format.DOT: statemachine.to_dot,
        Format.SVG: statemachine.to_svg,
        Format.PNG: statemachine.to_png,
    }
    try:
        picture = draw[chosen](found, highlight=highlight)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--highlight") from error
    data = picture.encode() if isinstance(picture, str) else picture
    if output:
        output.write_bytes(data)
    elif chosen is Format.PNG and sys.stdout.isatty():
        raise typer.BadParameter("a PNG is no text: give -o FILE", param_hint="--output")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
