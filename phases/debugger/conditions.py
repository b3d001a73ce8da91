"""Conditions that a breakpoint waits for: comparisons of what has a name, read without ever running anything."""

import ast
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass

from phases.debugger.truth import COMPARE, Names, truth_of

MAX_LENGTH, MOST_NAMES = 500, 30


class ConditionError(ValueError):
    """Text that is no condition; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The names that conditions may speak of.

    Attributes
    ----------
    meanings
        What each of them stands for.
    kinds
        Whether it is a number (float) or text (str); object: that is not known before it is looked at, and it may have
        parts, as in `order.amount`, `passed[0]` and `len(passed)`.
    every_step
        Those that can change with any step.
    examples
        Conditions to show to who asks for one.
    """

    meanings: Mapping[str, str]
    kinds: Mapping[str, type]
    every_step: frozenset[str]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition such as `top1 < 0.3`, `token == "\\n"`, `text contains "fox"` or `waiting > 2 and not seed == 7`.

    A name that has no value here, or one that cannot be compared with what stands beside it, makes its comparison
    neither true nor false, and a condition that hangs on it does not hold.
    """

    text: str
    names: frozenset[str]
    each_step: bool  # whether it can become true at any step
    lasting: bool  # whether it asks what something contains, which then goes on containing it
    _tree: ast.expr

    @classmethod
    def parse(cls, text: str, vocabulary: Vocabulary) -> "Condition":
        """Read a condition.

        Raises
        ------
        ConditionError
            When it holds anything but comparisons of names, strings and numbers joined by and, or and not.
        """
        text = text.strip()
        try:
            if len(text) > MAX_LENGTH:
                raise ConditionError(f"a condition has at most {MAX_LENGTH} characters, not {len(text)}")
            tree = ast.parse(_in_python(text), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
            if isinstance(error, ConditionError):
                raise
            example = " or ".join(vocabulary.examples[:2])
            raise ConditionError(f"expected a condition such as {example}, not {text!r}") from error
        _check(tree, vocabulary)
        names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id != "len")
        lasting = any(isinstance(node, ast.BinOp) for node in ast.walk(tree))
        return cls(text, names, bool(names & vocabulary.every_step), lasting, tree)

    def holds(self, value: Names) -> bool:
        """Whether it is true now."""
        return truth_of(self._tree, value) is True


def _in_python(text: str) -> str:
    """The text with `contains` as an operator of Python's that binds more tightly than comparisons do."""
    if "\n" in text:
        raise ConditionError(f"expected a condition on one line, not {text!r}")
    pieces, end = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string == "@":
            raise ConditionError(f"expected one of < <= > >= == != contains, not @ as in {text!r}")
        if token.type == tokenize.NAME and token.string == "contains":
            pieces += [text[end : token.start[1]], "@"]
            end = token.end[1]
    return "".join([*pieces, text[end:]])


def _in_words(node: ast.expr) -> str:
    return ast.unparse(node).replace(" @ ", " contains ")


def _check(node: ast.expr, vocabulary: Vocabulary) -> None:
    match node:
        case ast.BoolOp(values=values):
            for joined in values:
                _check(joined, vocabulary)
        case ast.UnaryOp(op=ast.Not(), operand=negated):
            _check(negated, vocabulary)
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):
            kind = _kind(left, vocabulary)
            if kind is float or (kind is str and _kind(right, vocabulary) is float):
                raise ConditionError(
                    f'expected text that contains text, as in text contains "fox", in {_in_words(node)!r}'
                )
            _kind(right, vocabulary)
        case ast.Compare(left=left, ops=ops, comparators=others):
            if not all(type(op) in COMPARE for op in ops):
                raise ConditionError(f"expected one of < <= > >= == != contains in {_in_words(node)!r}")
            kinds = {_kind(one, vocabulary): _in_words(one) for one in (left, *others)}
            if {str, float} <= kinds.keys():
                raise ConditionError(f"{kinds[str]} is text and {kinds[float]} is a number: they cannot be compared")
        case _:
            example = vocabulary.examples[0]
            raise ConditionError(f"expected a comparison such as {example}, not {_in_words(node)!r}")


def _kind(node: ast.expr, vocabulary: Vocabulary) -> type:
    """Whether an operand is a number (float), text (str) or either (object); raises ConditionError for all else."""
    match node:
        case ast.Name(id=name) if name in vocabulary.kinds:
            return vocabulary.kinds[name]
        case ast.Name(id=name):
            names = ", ".join([*vocabulary.kinds][:MOST_NAMES])
            raise ConditionError(f"there is no {name!r}; names: {names}")
        case ast.Attribute(value=owner) | ast.Subscript(value=owner, slice=ast.Constant(value=int() | str())) if (
            _is_place(owner) and _kind(owner, vocabulary) is object
        ):
            return object
        case ast.Call(func=ast.Name(id="len"), args=[owner], keywords=[]) if (
            _is_place(owner) and _kind(owner, vocabulary) is object
        ):
            return float
        case ast.Constant(value=str()):
            return str
        case ast.Constant(value=float() | int() as number) if not isinstance(number, bool):
            return float
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as number) if _kind(number, vocabulary) is float:
            return float
        case _:
            raise ConditionError(f"expected a name, a number or a string in quotes, not {_in_words(node)!r}")


def _is_place(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript)
