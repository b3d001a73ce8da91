"""What a command of the line mode is made of: its name, its usage, what it does, and how its arguments are read."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phases.debugger.errors import DebuggerError

Lines = list[str]

QUOTES = ("'", '"')
NAME = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"']\S*)(\s.*|)\Z""", re.DOTALL)


class Quit(Exception):
    """The user has had enough."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, how it is written and what it does with a session and the rest of the line."""

    name: str
    usage: str
    help: str
    act: Callable[[Any, str], Lines]


def number(rest: str, usage: str, default: int | None = None) -> int:
    """A whole number; raises DebuggerError."""
    if not rest and default is not None:
        return default
    try:
        return int(rest)
    except ValueError:
        raise DebuggerError(f"expected {usage}, not {rest!r}" if rest else f"expected {usage}") from None


def string(rest: str, usage: str) -> str:
    """Text in quotes, with Python's escapes; what has no quotes is taken as it stands."""
    if rest[:1] not in QUOTES:
        if not rest:
            raise DebuggerError(f"expected {usage}")
        return rest
    try:
        value = ast.literal_eval(rest)
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, str):
        raise DebuggerError(f"expected {usage}, not {rest!r}: its quotes do not match")
    return value


def name_and_rest(rest: str, usage: str) -> tuple[str, str]:
    """A name, in quotes if there is a space in it, and what comes behind; raises DebuggerError."""
    found = NAME.match(rest)
    if found is None:
        raise DebuggerError(f"expected {usage}, not {rest!r}: its quotes do not match" if rest else f"expected {usage}")
    return string(found[1], usage), found[2].strip()


def written(name: str) -> str:
    """A name as `name_and_rest` reads it."""
    return name if name.split() == [name] and name[0] not in QUOTES else repr(name)


def value(rest: str, usage: str) -> Any:
    """A value in JSON; raises DebuggerError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    if not rest:
        raise DebuggerError(f"expected {usage}")
    try:
        return json.loads(rest, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DebuggerError(f"expected {usage}, but {rest!r:.200} is no JSON: {error}") from None


def path(rest: str, usage: str) -> Path:
    """A path, in quotes or as it stands."""
    return Path(string(rest, usage))
