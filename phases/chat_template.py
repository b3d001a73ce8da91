"""Renders a checkpoint's chat template: a program from outside, run in a sandbox with its time and size bounded."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from phases.template_limits import (
    BIT,
    FILTERS,
    METHODS,
    REFUSED,
    ROOM,
    SOURCE,
    WIDE_BRACES,
    WIDE_PERCENT,
    Meter,
    TemplateTooCostly,
    bounded_range,
    check_format,
    current,
    strftime_now,
)  # fmt: skip


class ChatTemplate:
    """A compiled chat template.

    Variables, filters and tags are those that `apply_chat_template` of transformers gives to templates, without the
    few filters that lay out pages. Raises what jinja2 raises, TemplateTooCostly, or whatever the template makes
    Python raise: RecursionError, TypeError, ...
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE:
            raise TemplateTooCostly(f"it has {len(source)} characters, expected at most {SOURCE}")
        with Meter(0).running():
            self._template = _Metered().from_string(source)

    def render(self, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
        """The text of a chat, up to where the answer begins."""
        given = sum(len(text) + 8 * ROOM for message in messages for text in message.values())
        with Meter(given).running():
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
        filters: dict[str, Any] = self.filters | FILTERS
        tests: dict[str, Any] = self.tests
        self.filters = {name: self._metered(function) for name, function in filters.items()}
        self.tests = {name: self._metered(function) for name, function in tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": strftime_now,
            "range": bounded_range,
            "dict": _Dict(),
            "namespace": _SafeNamespace,
        }

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            current.get().tick()
            return self.weighed(function(*args, **kwargs))

        return metered

    def tick(self) -> None:
        """Nothing, as every call looks at the clock."""

    def weighed(self, value: Any) -> Any:
        current.get().weigh(value)
        return value

    def joined(self, *values: object) -> str:
        """What the operator ~ makes."""
        return self.concat(str(self.weighed(value)) for value in values)

    def concat(self, pieces: Iterable[str]) -> str:
        meter, size, kept = current.get(), 0, []
        for piece in pieces:
            size += len(piece)
            meter.check(size)
            kept.append(piece)
        return str(self.weighed("".join(kept)))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        current.get().tick()
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str) and name in METHODS:
            METHODS[name](text, *args, **kwargs)
            if name == "join":  # of an iterator that was used up, perhaps
                return self.joined_by(text, *args)
        return self.weighed(super().call(context, obj, *args, **kwargs))

    def joined_by(self, separator: str, values: Iterable[Any]) -> str:
        items = list(values)
        current.get().check(len(separator) * len(items) + sum(map(len, items)))
        return str(self.weighed(separator.join(items)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = current.get()
        meter.tick()
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    meter.check((len(many) + (0 if isinstance(many, str) else ROOM)) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.check(left.bit_length() * max(0, right) * BIT)
        elif operator == "%" and isinstance(left, str):
            check_format(left, right, WIDE_PERCENT)
        return self.weighed(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr in REFUSED):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, (args, kwargs), WIDE_BRACES)
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
