"""phasewalk diagram: draw a machine, at rest or as a run was recorded."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from phases.cli.target import BUILT_IN, MachineArgument, find_machine


class Format(StrEnum):
    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    PNG = "png"


def diagram(
    machine: MachineArgument = BUILT_IN,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the machine of this recorded run instead, with its counts and times.",
                     exists=True, dir_okay=False),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", "-f", help="Unless given, what FILE's ending says, or mermaid.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Unless given, stdout.")] = None,
    highlight: Annotated[str | None, typer.Option(metavar="PHASE", help="Light this phase up.")] = None,
) -> None:  # fmt: skip
    """Draw a machine: as Mermaid or DOT text, or as an SVG or PNG picture (these two need Graphviz).

    phasewalk diagram -o machine.svg

    With --journal, arrows say how often they were taken, phases their median time and their share of all time, and the
    darker a phase, the larger that share. The machine itself is not needed.

    phasewalk diagram --journal run.jsonl -o run.svg
    """
    import statemachine

    endings = {".dot": Format.DOT, ".gv": Format.DOT, ".svg": Format.SVG, ".png": Format.PNG}
    chosen = format or (endings.get(output.suffix.lower()) if output else None) or Format.MERMAID
    draw: dict[Format, Callable[..., str | bytes]] = {
        Format.MERMAID: statemachine.to_mermaid,
        Format.DOT: statemachine.to_dot,
        Format.SVG: statemachine.to_svg,
        Format.PNG: statemachine.to_png,
    }
    found, options = _recorded(machine, journal) if journal else (find_machine(machine), {})
    try:
        picture = draw[chosen](found, highlight=highlight, **options)
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


def _recorded(machine: str, path: Path) -> tuple[Any, dict[str, Any]]:
    from statemachine import Journal
    from statemachine.views.chart import Chart
    from statemachine.views.tally import Tally

    if machine != BUILT_IN:
        raise typer.BadParameter(f"a journal holds its own machine: give {machine} or --journal, not both")
    journal = Journal.open(path)
    return Chart.of_record(journal.header.machine), {"tally": Tally.of(journal)}
