"""The options that say what the output is to be, for every command that generates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phases.cli.files import readable_file

if TYPE_CHECKING:
    from phases.constraint import Constraint

CONSTRAINT = "Output that is (one of these; needs phasewalk\\[constrain])"

JsonSchema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON that the schema in this file validates.", exists=True, dir_okay=False,
                 callback=readable_file, rich_help_panel=CONSTRAINT),
]  # fmt: skip
Regex = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="What this regular expression matches.", rich_help_panel=CONSTRAINT),
]
Choice = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="This text, or that of another --choice.", rich_help_panel=CONSTRAINT),
]
Grammar = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Text of the grammar in this file: Lark's or GBNF.", exists=True, dir_okay=False,
                 callback=readable_file, rich_help_panel=CONSTRAINT),
]  # fmt: skip


def constraint_of(
    json_schema: Path | None, regex: str | None, choice: list[str] | None, grammar: Path | None
) -> "Constraint | None":
    """The constraint that was asked for; what it refuses is a wrong command line."""
    from phases.constraint import Constraint
    from phases.errors import RequestError

    given = {
        "--json-schema": json_schema, "--regex": regex, "--choice": choice or None, "--grammar": grammar,
    }  # fmt: skip
    options = [name for name, value in given.items() if value is not None]
    if not options:
        return None
    if len(options) > 1:
        raise typer.BadParameter(f"the output can be one of these, not {' and '.join(options)} both")
    try:
        return Constraint(
            json_schema=_text(json_schema), regex=regex, choice=tuple(choice) if choice else None,
            grammar=_text(grammar),
        )  # fmt: skip
    except RequestError as error:
        raise typer.BadParameter(str(error), param_hint=options[0]) from error


def _text(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not UTF-8 text: {error}") from error
