"""Finds the machine that a command is about, and contexts for it: built in, or the user's, by module or file."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any
from zlib import crc32

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
    place, name = _place_and_name(target)
    return _machine(target, _module(place), name)


def find_machine_and_context(target: str, context: str) -> "tuple[Machine[Any], Callable[[], Any]]":
    """Import a machine, and what makes a context for it: a function, or a class, that takes no arguments.

    Where both stand in the same file, it is imported once, so that they mean the same classes.

    Raises
    ------
    typer.BadParameter
        When there is none of the one or the other, or contexts cannot be made without arguments.
    InvalidMachine, UserCodeError
        As `find_machine`; the latter also when making a context fails.
    """
    place, name = _place_and_name(target)
    module = _module(place)
    machine = _machine(target, module, name)
    place, name = _place_and_name(context)
    if _file_of(place) != Path(str(module.__file__)).resolve():
        module = _module(place)
    return machine, _context_maker(context, _named(module, name, "--context", "my_package.lights:new_context"))


def _context_maker(target: str, make: Any) -> Callable[[], Any]:
    wanted = "expected a function without arguments, or a class whose fields have defaults, that gives a context"
    if not callable(make):
        raise typer.BadParameter(f"{target} is a {type(make).__name__}; {wanted}", param_hint="--context")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise typer.BadParameter(f"{target}: {error}; {wanted}", param_hint="--context") from error
    except ValueError:  # one of C's, which says nothing of its arguments
        pass

    def made() -> Any:
        with _told(target):
            context = make()
        if context is None:
            raise typer.BadParameter(f"{target} gave None; {wanted}", param_hint="--context")
        return context

    return made


def _place_and_name(target: str) -> tuple[str, str]:
    """A module or file, and the name in it."""
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():  # a name alone is a module's, or a drive's in front of its path
        return target, "machine"
    return place, name


def _module(place: str) -> ModuleType:
    return _of_file(Path(place).expanduser()) if place.endswith(".py") else _of_name(place)


def _file_of(place: str) -> Path | None:
    """The file that a module would come from; None if that cannot be told."""
    if place.endswith(".py"):
        return Path(place).expanduser().resolve()
    with _importable(""):
        try:
            spec = importlib.util.find_spec(place)
        except Exception:  # whoever imports it is told
            return None
    return Path(spec.origin).resolve() if spec and spec.origin else None


def _machine(target: str, module: ModuleType, name: str) -> "Machine[Any]":
    from statemachine import Machine

    machine = _named(module, name, None, BUILT_IN)
    if not isinstance(machine, Machine):
        raise typer.BadParameter(f"{target} is a {type(machine).__name__}, not a Machine")
    return machine


def _named(module: ModuleType, name: str, hint: str | None, example: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError as error:
        where = getattr(module, "__file__", None) or module.__name__
        raise typer.BadParameter(
            f"{where} has no attribute {name!r}; {EXPECTED}, such as {example}", param_hint=hint
        ) from error


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
    name = f"{path.stem}_{crc32(str(path.resolve()).encode()):08x}"  # which is no other module's
    spec = importlib.util.spec_from_file_location(name, path)
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
