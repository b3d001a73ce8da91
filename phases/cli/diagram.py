"""phasewalk diagram: draw a machine, at rest or as a run was recorded."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from phases.cli.files import is_stdout, output_file, readable_file
from phases.cli.target import BUILT_IN, MachineArgument, find_machine
from phases.printable import printable


class Format(StrEnum):
    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"
    PNG = "png"
    PDF = "pdf"


ENDINGS = {
    ".mmd": Format.MERMAID, ".md": Format.MERMAID, ".dot": Format.DOT, ".gv": Format.DOT, ".svg": Format.SVG,
    ".png": Format.PNG, ".pdf": Format.PDF,
}  # fmt: skip


def diagram(
    machine: MachineArgument = BUILT_IN,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the machine of this recorded run instead, with its counts and times.",
                     exists=True, dir_okay=False, callback=readable_file),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", "-f", help="Unless given, what FILE's ending says; mermaid on stdout.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Unless given, or if -, stdout.")
    ] = None,
    highlight: Annotated[str | None, typer.Option(metavar="PHASE", help="Light this phase up.")] = None,
) -> None:  # fmt: skip
    """Draw a machine: as Mermaid or DOT text, or as an SVG, PNG or PDF picture (these three need Graphviz).

    phasewalk diagram -o machine.svg

    With --journal, arrows say how often they were taken, phases their median time and their share of all time, and the
    darker a phase, the larger that share. The machine itself is not needed.

    phasewalk diagram --journal run.jsonl -o run.svg
    """
    import statemachine

    chosen = format or _format_of(output)
    draw: dict[Format, Callable[..., str | bytes]] = {
        Format.MERMAID: statemachine.to_mermaid,
        Format.DOT: statemachine.to_dot,
        Format.SVG: statemachine.to_svg,
        Format.PNG: statemachine.to_png,
        Format.PDF: statemachine.to_pdf,
    }
    if chosen in (Format.PNG, Format.PDF) and (output is None or is_stdout(output)) and sys.stdout.isatty():
        raise typer.BadParameter(f"a {chosen.upper()} is no text: give -o FILE", param_hint="--output")
    found, options = _recorded(machine, journal) if journal else (find_machine(machine), {})
    try:
        picture = draw[chosen](found, highlight=highlight, **options)
    except ValueError as error:
        raise typer.BadParameter(printable(str(error)), param_hint="--highlight") from error
    if isinstance(picture, str):
        if output is not None and output.suffix.lower() == ".md" and chosen is Format.MERMAID:
            picture = f"```mermaid\n{picture}```\n"  # so that what shows Markdown draws it
        picture = printable(picture).encode(errors="backslashreplace")
    with output_file(output, unlike=journal) as file:
        file.write(picture)


def _format_of(output: Path | None) -> Format:
    """What the name of the output says."""
    if output is None or is_stdout(output):
        return Format.MERMAID
    try:
        return ENDINGS[output.suffix.lower()]
    except KeyError:
        raise typer.BadParameter(
            f"{output.name!r} ends as no diagram does; endings: {', '.join(ENDINGS)} (or say which with --format)",
            param_hint="--output",
        ) from None


def _recorded(machine: str, path: Path) -> tuple[Any, dict[str, Any]]:
    from statemachine import Journal
    from statemachine.views.chart import Chart
    from statemachine.views.tally import Tally

    if machine != BUILT_IN:
        raise typer.BadParameter(f"a journal holds its own machine: give {machine} or --journal, not both")
    journal = Journal.open(path)
    return Chart.of_record(journal.header.machine), {"tally": Tally.of(journal)}
