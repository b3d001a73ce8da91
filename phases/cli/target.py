"""Finds the machine that a command is about: the built-in one, or one of the user's by `module:name`."""

import importlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from statemachine import Machine

BUILT_IN = "phases.generation:machine"
MachineArgument = Annotated[
    str,
    typer.Argument(
        metavar="[MODULE:NAME]",
        help="A machine of yours, e.g. my_package.lights:machine.",
        show_default="the built-in one",
    ),
]


def find_machine(target: str) -> "Machine[Any]":
    """Import the machine; a module that cannot be imported or holds no such machine is a usage error."""
    from statemachine import Machine

    module_name, _, name = target.partition(":")
    sys.path.insert(0, "")  # as `python -m` does: modules of the present folder
    try:
        machine = getattr(importlib.import_module(module_name), name or "machine")
    except ImportError as error:
        raise typer.BadParameter(f"cannot import {module_name!r}: {error}; expected MODULE:NAME") from error
    except AttributeError as error:
        raise typer.BadParameter(f"{error}; expected MODULE:NAME, such as {BUILT_IN}") from error
    finally:
        sys.path.remove("")
    if not isinstance(machine, Machine):
        raise typer.BadParameter(f"{target} is a {type(machine).__name__}, not a Machine")
    return machine
