"""What a chat template may use: a meter of time and text, and filters that ask it before they make something large."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2 import pass_environment, pass_eval_context
from jinja2.filters import do_format, do_indent, do_replace, do_round, make_attrgetter
from jinja2.sandbox import safe_range

SECONDS = 2.0  # of this thread's processor time; templates need milliseconds
LARGEST = 4 * 2**20  # characters of the largest value; a long chat may make larger ones
SOURCE = 256 * 2**10  # characters of the template itself; the longest in use have 30,000
ROOM = 48  # what any value weighs besides its characters, so that a list of nothings is not for free
BIT = 2**10  # characters that a bit of a whole number counts for: numbers of a few thousand bits are quick


class TemplateTooCostly(Exception):
    """A template takes more time or makes more text than any prompt needs."""


@dataclass(slots=True)
class Meter:
    """What one rendering of so many characters may use."""

    given: int
    largest: int = field(init=False)  # characters of one value
    left: int = field(init=False)  # characters of all values together, those included that are long gone
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.largest = LARGEST + 4 * self.given
        self.left = 64 * LARGEST + 1024 * self.given
        self.deadline = time.thread_time() + SECONDS

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the meter of whatever this thread renders or compiles."""
        token = current.set(self)
        try:
            yield
        finally:
            current.reset(token)

    def tick(self) -> None:
        if time.thread_time() > self.deadline:
            raise TemplateTooCostly(f"it takes more than {SECONDS:g} seconds")

    def check(self, size: int) -> None:
        if size > self.largest:
            raise TemplateTooCostly(f"it makes a value of more than {self.largest} characters")

    def weigh(self, value: object) -> None:
        """Add up a value and all that it holds: the same list held ten times counts ten times, as its text would."""
        weight, values = 0, [value]
        while values:
            value = values.pop()
            weight += ROOM
            if isinstance(value, str):
                weight += len(value)
            elif isinstance(value, list | tuple | dict):
                self.check(weight + ROOM * len(value))
                values.extend(value)
                if isinstance(value, dict):
                    values.extend(value.values())
            elif isinstance(value, int):
                self.check(value.bit_length() * BIT)
            self.check(weight - ROOM)
        self.left -= weight
        if self.left < 0:
            raise TemplateTooCostly("its values have too many characters together")


current: ContextVar[Meter] = ContextVar("meter")


def strftime_now(format: str) -> str:
    current.get().check(len(format) * 2**10)  # a few characters of format can make hundreds
    return datetime.now().strftime(format)


WIDE_PERCENT = re.compile(r"[%(). #+-]0*(?:\d{4,}|\*)[\d.*hlL]*[diouxXeEfFgGcrsa]")
WIDE_BRACES = re.compile(r"\{[^{}:]*:[^{}]*?(?:\d{4,}|\{)")


def check_format(template: str, values: object, wide: re.Pattern[str]) -> None:
    """Refuse wide fields (`%9999d`, `{:9999}`, widths that are values themselves), and many fields of large values."""
    if wide.search(template):
        raise TemplateTooCostly("it formats a field of great width")
    meter = current.get()
    before = meter.left
    meter.weigh(values)
    meter.check((before - meter.left) * max(template.count("%"), template.count("{")))


def _check_width(text: str, width: int, *_: object) -> None:
    current.get().check(max(len(text), width))


def _check_replace(text: str, old: str, new: str, *_: object) -> None:
    current.get().check(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _check_nothing(*_: object) -> None:
    pass


METHODS: dict[str, Callable[..., None]] = {
    "center": _check_width,
    "ljust": _check_width,
    "rjust": _check_width,
    "zfill": _check_width,
    "replace": _check_replace,
    "join": _check_nothing,
}
REFUSED = ("encode", "expandtabs", "translate")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    meter = current.get()
    meter.weigh(value)
    for lengthening in (indent, *(separators or ())):
        meter.check((len(lengthening) if isinstance(lengthening, str) else lengthening or 0) * 2**15)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None and separators is None:
        return encoder.encode(value)
    size, pieces = 0, []
    for piece in encoder.iterencode(value):
        size += len(piece)
        meter.check(size)
        pieces.append(piece)
    return "".join(pieces)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    check_format(str(value), kwargs or args, WIDE_PERCENT)
    return do_format(value, *args, **kwargs)


@pass_eval_context
def _replace(eval_ctx: Any, s: Any, old: str, new: str, count: int | None = None) -> str:
    _check_replace(str(s), str(old), str(new))
    return do_replace(eval_ctx, s, old, new, count)


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    room = len(width) if isinstance(width, str) else width
    current.get().check(len(str(s)) + room * (len(str(s).splitlines()) + 1))
    return do_indent(s, width, first, blank)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    current.get().check(abs(precision) * 2**15)
    return do_round(value, precision, method)


@pass_environment
def _join(environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return str(environment.joined_by(str(d), (str(environment.weighed(item)) for item in value)))


@pass_environment
def _sum(environment: Any, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    for value in iterable:
        start = environment.call_binop(None, "+", start, value)
    return start


def bounded_range(*args: int) -> range:
    if any(abs(argument) > 2**31 for argument in args):
        raise TemplateTooCostly("its range is too wide")
    return safe_range(*args)


FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "format": _format,
    "replace": _replace,
    "indent": _indent,
    "round": _round,
    "join": _join,
    "sum": _sum,
}
