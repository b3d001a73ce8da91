"""Renders a checkpoint's chat template: a program from outside, run in a sandbox with its time and size bounded."""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_environment, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_indent, do_replace, do_round, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of this thread's processor time; templates need milliseconds
LARGEST = 4 * 2**20  # characters of the largest value; a long chat may make larger ones
SOURCE = 256 * 2**10  # characters of the template itself; the longest in use have 30,000
_ROOM = 48  # what any value weighs besides its characters, so that a list of nothings is not for free
_BIT = 2**10  # characters that a bit of a whole number counts for: numbers of a few thousand bits are quick


class TemplateTooCostly(Exception):
    """A template takes more time or makes more text than any prompt needs."""


@dataclass(slots=True)
class _Meter:
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
        token = _meter.set(self)
        try:
            yield
        finally:
            _meter.reset(token)

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
            weight += _ROOM
            if isinstance(value, str):
                weight += len(value)
            elif isinstance(value, list | tuple | dict):
                self.check(weight + _ROOM * len(value))
                values.extend(value)
                if isinstance(value, dict):
                    values.extend(value.values())
            elif isinstance(value, int):
                self.check(value.bit_length() * _BIT)
            self.check(weight - _ROOM)
        self.left -= weight
        if self.left < 0:
            raise TemplateTooCostly("its values have too many characters together")


_meter: ContextVar[_Meter] = ContextVar("meter")


class ChatTemplate:
    """A compiled chat template.

    Variables, filters and tags are those that `apply_chat_template` of transformers gives to templates, without the
    few filters that lay out pages. Raises what jinja2 raises, TemplateTooCostly, or whatever the template makes
    Python raise: RecursionError, TypeError, ...
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE:
            raise TemplateTooCostly(f"it has {len(source)} characters, expected at most {SOURCE}")
        with _Meter(0).running():
            self._template = _Metered().from_string(source)

    def render(self, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
        """The text of a chat, up to where the answer begins."""
        given = sum(len(text) + 8 * _ROOM for message in messages for text in message.values())
        with _Meter(given).running():
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None, documents=None, add_generation_prompt=True, **special_tokens,
            )  # fmt: skip


class _Metered(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, in which whatever repeats looks at the clock and whatever grows is weighed.

    Loops and macros get a call of `tick` as their first statement, so that one which prints nothing ends too; new
    lists and joined strings are weighed where they are made. Operators, filters, tests and calls pass through methods
    of the sandbox. What one operation can make is checked before it is done.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=self.weighed
        )
        for name in ("batch", "center", "pprint", "slice", "urlize", "wordwrap", "xmlattr"):
            del self.filters[name]
        filters: dict[str, Any] = self.filters | _FILTERS
        tests: dict[str, Any] = self.tests
        self.filters = {name: self._metered(function) for name, function in filters.items()}
        self.tests = {name: self._metered(function) for name, function in tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "range": _range,
            "dict": _Dict(),
            "namespace": _SafeNamespace,
        }

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            _meter.get().tick()
            return self.weighed(function(*args, **kwargs))

        return metered

    def tick(self) -> None:
        """Nothing, as every call looks at the clock."""

    def weighed(self, value: Any) -> Any:
        _meter.get().weigh(value)
        return value

    def joined(self, *values: object) -> str:
        """What the operator ~ makes."""
        return self.concat(str(self.weighed(value)) for value in values)

    def concat(self, pieces: Iterable[str]) -> str:
        meter, size, kept = _meter.get(), 0, []
        for piece in pieces:
            size += len(piece)
            meter.check(size)
            kept.append(piece)
        return str(self.weighed("".join(kept)))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _meter.get().tick()
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name in _METHODS:
            _METHODS[name](text, *args, **kwargs)
            if name == "join":  # of an iterator that was used up, perhaps
                return self.joined_by(text, *args)
        return self.weighed(super().call(context, obj, *args, **kwargs))

    def joined_by(self, separator: str, values: Iterable[Any]) -> str:
        items = list(values)
        _meter.get().check(len(separator) * len(items) + sum(map(len, items)))
        return str(self.weighed(separator.join(items)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter.get()
        meter.tick()
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    meter.check((len(many) + (0 if isinstance(many, str) else _ROOM)) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.check(left.bit_length() * max(0, right) * _BIT)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right, _WIDE_PERCENT)
        return self.weighed(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr in _REFUSED):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (args, kwargs), _WIDE_BRACES)
            return wrapped(*args, **kwargs)

        return checked

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Instrument().visit(super()._parse(source, name, filename))
        assert isinstance(tree, nodes.Template)
        tree.set_environment(self)
        return tree


class _Instrument(NodeTransformer):
    """Puts calls of the environment's `tick`, `weighed` and `joined` where they are needed."""

    def _repeated(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", [], node.lineno)).set_lineno(node.lineno))
        assert isinstance(node, nodes.Node)
        return node

    visit_For = visit_Macro = visit_CallBlock = _repeated  # noqa: N815

    def _made(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if constant or getattr(node, "ctx", "load") != "load" else _call("weighed", [node], node.lineno)

    visit_List = visit_Tuple = visit_Dict = _made  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("weighed", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("joined", node.nodes, node.lineno)


def _call(method: str, args: list[nodes.Expr], line: int) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None)
    call.set_lineno(line)
    return call


class _Generation(Extension):
    """The tag {% generation %}, which marks what an assistant said; it changes no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The function `dict`, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _SafeNamespace(Namespace):
    """Takes no name with an underscore in front, and shows nothing of what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as Namespace does: `self` may be one of the names
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _SafeNamespace._check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _SafeNamespace._check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace takes no name with an underscore in front, but {name!r:.80} came")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    _meter.get().check(len(format) * 2**10)  # a few characters of format can make hundreds
    return datetime.now().strftime(format)


# --- what one operation may make ------------------------------------------------------------------------------------


_WIDE_PERCENT = re.compile(r"[%(). #+-]0*(?:\d{4,}|\*)[\d.*hlL]*[diouxXeEfFgGcrsa]")
_WIDE_BRACES = re.compile(r"\{[^{}:]*:[^{}]*?(?:\d{4,}|\{)")


def _check_format(template: str, values: object, wide: re.Pattern[str]) -> None:
    """Refuse wide fields (`%9999d`, `{:9999}`, widths that are values themselves), and many fields of large values."""
    if wide.search(template):
        raise TemplateTooCostly("it formats a field of great width")
    meter = _meter.get()
    before = meter.left
    meter.weigh(values)
    meter.check((before - meter.left) * max(template.count("%"), template.count("{")))


def _check_width(text: str, width: int, *_: object) -> None:
    _meter.get().check(max(len(text), width))


def _check_replace(text: str, old: str, new: str, *_: object) -> None:
    _meter.get().check(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _check_nothing(*_: object) -> None:
    pass


_METHODS: dict[str, Callable[..., None]] = {
    "center": _check_width,
    "ljust": _check_width,
    "rjust": _check_width,
    "zfill": _check_width,
    "replace": _check_replace,
    "join": _check_nothing,
}
_REFUSED = ("encode", "expandtabs", "translate")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    meter = _meter.get()
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
    _check_format(str(value), kwargs or args, _WIDE_PERCENT)
    return do_format(value, *args, **kwargs)


@pass_eval_context
def _replace(eval_ctx: Any, s: Any, old: str, new: str, count: int | None = None) -> str:
    _check_replace(str(s), str(old), str(new))
    return do_replace(eval_ctx, s, old, new, count)


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    room = len(width) if isinstance(width, str) else width
    _meter.get().check(len(str(s)) + room * (len(str(s).splitlines()) + 1))
    return do_indent(s, width, first, blank)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    _meter.get().check(abs(precision) * 2**15)
    return do_round(value, precision, method)


@pass_environment
def _join(environment: _Metered, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return environment.joined_by(str(d), (str(environment.weighed(item)) for item in value))


@pass_environment
def _sum(environment: _Metered, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if attribute is not None:
        iterable = map(make_attrgetter(environment, attribute), iterable)
    for value in iterable:
        start = environment.call_binop(None, "+", start, value)  # type: ignore[arg-type]
    return start


def _range(*args: int) -> range:
    if any(abs(argument) > 2**31 for argument in args):
        raise TemplateTooCostly("its range is too wide")
    return safe_range(*args)


_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "format": _format,
    "replace": _replace,
    "indent": _indent,
    "round": _round,
    "join": _join,
    "sum": _sum,
}
