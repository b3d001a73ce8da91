"""Finds the machine that a command is about: the built-in one, or one of the user's, by its module or its file."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from phases.context import Generation
    from statemachine import Machine

BUILT_IN = "phases.generation:machine"
EXPECTED = "expected MODULE:NAME or FILE.py:NAME"
MachineArgument = Annotated[
    str,
    typer.Argument(
        metavar="[MODULE:NAME|FILE.py:NAME]",
        help="A machine of yours, e.g. my_package.lights:machine or ./lights.py:machine.",
        show_default="the built-in one",
    ),
]
MachineOption = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="MODULE:NAME",
        help="Your machine that generates, or FILE.py:NAME: the built-in one with a phase inserted, say.",
        show_default="the built-in one",
    ),
]


class UserCodeError(Exception):
    """A user's module that fails while it is imported; the message says where, in one line."""


def find_machine(target: str) -> "Machine[Any]":
    """Import the machine.

    Raises
    ------
    typer.BadParameter
        When there is no such module, or no machine of that name in it.
    InvalidMachine
        When the machine is none, as `check` tells.
    UserCodeError
        When the module is there, but fails.
    """
    from statemachine import Machine

    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():  # a name alone is a module's, or a drive's in front of its path
        place, name = target, "machine"
    module = _of_file(Path(place).expanduser()) if place.endswith(".py") else _of_name(place)
    try:
        machine = getattr(module, name)
    except AttributeError as error:
        raise typer.BadParameter(f"{error}; {EXPECTED}, such as {BUILT_IN}") from error
    if not isinstance(machine, Machine):
        raise typer.BadParameter(f"{target} is a {type(machine).__name__}, not a Machine")
    return machine


def generating_machine(target: str | None) -> "Machine[Generation]":
    """Import the machine that `--machine` names; the built-in one if it names none.

    Raises
    ------
    typer.BadParameter
        When there is none, or it lacks a phase that a generation is driven and shown by.
    InvalidMachine, UserCodeError
        As `find_machine`.
    """
    from phases.generation import machine

    if target is None:
        return machine
    found = find_machine(target)
    if lacking := [name for name in machine.phases if name not in found.phases]:
        raise typer.BadParameter(
            f"{target} is no machine that generates: it has no phase {' and none '.join(lacking)}; make one of the "
            f"built-in one, with phases.machine.insert(...)",
            param_hint="--machine",
        )
    return found


def _of_name(name: str) -> ModuleType:
    with _importable(""), _told(name):  # as `python -m` does: modules of the present folder
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, but what it imports is not
            raise typer.BadParameter(f"cannot import {name!r}: {error}; {EXPECTED}") from error
        except (TypeError, ValueError) as error:
            if all(part.isidentifier() for part in name.split(".")):
                raise
            raise typer.BadParameter(f"cannot import {name!r}: that is no module's name; {EXPECTED}") from error


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}; {EXPECTED}")
    spec = importlib.util.spec_from_file_location("phasewalk_target", path)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with _importable(str(path.parent.absolute())), _told(str(path)):  # as `python FILE.py` does: its neighbours
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What a user's module raises while it is imported, in one line with its place."""
    from statemachine import InvalidMachine

    try:
        yield
    except (typer.BadParameter, InvalidMachine):
        raise
    except (Exception, SystemExit) as error:
        what = traceback.format_exception_only(error)[-1].strip()
        raise UserCodeError(f"{_place(error) or where}: {what}") from error


def _place(error: BaseException) -> str:
    """File and line of the user's code that raised; "" where only the import itself did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    ours = str(Path(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != ours and not frame.filename.startswith("<frozen")
        and "importlib" not in Path(frame.filename).parts
    ]  # fmt: skip
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
