"""What a recorded run is run again with: what the user says, or what the record names, if it can be trusted."""

import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from phases.cli.screen import warn
from phases.printable import printable

if TYPE_CHECKING:
    from statemachine import Journal, Machine


def model_of(journal: "Journal", model: str | None) -> str | None:
    """The model to load; None is the one that comes with the package.

    A record comes from anywhere and can name anything, so a model that is no folder here is only asked for at the hub
    if the user says so: by --model, or by a yes to the question.

    Raises
    ------
    CheckpointError
        When the user does not say so, or cannot be asked.
    """
    from gpu import CheckpointError
    from phases.generator import DEMO

    named = journal.header.environment.get("source", DEMO)
    if model is not None or named == DEMO:
        return model
    if isinstance(named, str) and named and os.path.isdir(os.path.expanduser(named)):
        return named
    what = f"{journal.path} names the model {str(named)!r:.200}, which is no folder here"
    if sys.stdin.isatty() and sys.stderr.isatty() and isinstance(named, str):
        if typer.confirm(printable(f"{what}; fetch it from the Hugging Face hub?"), err=True):
            return named
        raise CheckpointError("nothing was fetched; say which model with --model NAME")
    raise CheckpointError(f"{what}; say which with --model NAME (a folder or a Hugging Face hub id)")


def tell_of_lacking_phases(journal: "Journal", machine: "Machine[Any]") -> None:
    """Warn that a record is of another machine than the one that is to go through it."""
    from phases.recorded import machine_of

    its, machine = journal.header.machine, machine_of(journal, machine)
    if its.version >= machine.version and (lacking := [name for name in its.phases if name not in machine.phases]):
        warn(
            f"{journal.path} was recorded by a machine with the phase {', '.join(lacking)}, which the one here lacks: "
            f"name yours with --machine MODULE:NAME"
        )
