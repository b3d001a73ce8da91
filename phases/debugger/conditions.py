"""Conditions that a breakpoint waits for: comparisons of a few names, read without ever running anything."""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Value = float | str
Names = Callable[[str], Value | None]  # gives a name its present value; None: it has none here

NUMBERS = {
    "top1": "the probability of the likeliest token, before temperature",
    "margin": "top1 less the probability of the second likeliest",
    "entropy": "of all tokens, in bits",
    "token_id": "the last token",
    "length": "tokens of output",
    "step": "steps taken",
}
TEXTS = {"token": "the text of the last token", "phase": "the phase that runs next"}
EVERY_STEP = {"step", "phase"}

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
MAX_LENGTH = 500


class ConditionError(ValueError):
    """Text that is no condition; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition such as `top1 < 0.3`, `token == "\\n"` or `length == 40 and not phase == "decode"`.

    A name that has no value here makes its comparison neither true nor false, and a condition that hangs on it does
    not hold.
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> "Condition":
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
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, ConditionError):
                raise
            raise ConditionError(f'expected a condition such as top1 < 0.3 or token == "\\n", not {text!r}') from error
        _check(tree)
        return cls(text, frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)), tree)

    @property
    def each_step(self) -> bool:
        """Whether it can become true at any step; any other condition is looked at once a token."""
        return bool(self.names & EVERY_STEP)

    def holds(self, value: Names) -> bool:
        """Whether it is true now."""
        return _truth(self._tree, value) is True


def _check(node: ast.expr) -> None:
    match node:
        case ast.BoolOp(values=values):
            for part in values:
                _check(part)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            _check(part)
        case ast.Compare(left=left, ops=ops, comparators=others):
            if not all(type(op) in _COMPARE for op in ops):
                raise ConditionError(f"expected one of < <= > >= == != in {ast.unparse(node)!r}")
            kinds = {_kind(part): ast.unparse(part) for part in (left, *others)}
            if len(kinds) > 1:
                raise ConditionError(f"{kinds[str]} is text and {kinds[float]} is a number: they cannot be compared")
        case _:
            raise ConditionError(f"expected a comparison such as length == 40, not {ast.unparse(node)!r}")


def _kind(node: ast.expr) -> type:
    """Whether an operand is a number or text; raises ConditionError if it is neither."""
    match node:
        case ast.Name(id=name) if name in NUMBERS:
            return float
        case ast.Name(id=name) if name in TEXTS:
            return str
        case ast.Name(id=name):
            raise ConditionError(f"there is no {name!r}; names: {', '.join([*NUMBERS, *TEXTS])}")
        case ast.Constant(value=str()):
            return str
        case ast.Constant(value=float() | int() as number) if not isinstance(number, bool):
            return float
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as part) if _kind(part) is float:
            return float
        case _:
            raise ConditionError(f"expected a name, a number or a string in quotes, not {ast.unparse(node)!r}")


def _truth(node: ast.expr, value: Names) -> bool | None:
    """The truth of a node in Kleene's logic, where None is neither true nor false."""
    match node:
        case ast.BoolOp(op=op, values=values):
            decisive = isinstance(op, ast.Or)
            truths = [_truth(part, value) for part in values]
            if decisive in truths:
                return decisive
            return None if None in truths else not decisive
        case ast.UnaryOp(operand=part):
            truth = _truth(part, value)
            return None if truth is None else not truth
        case ast.Compare(left=left, ops=ops, comparators=others):
            operands = [_operand(part, value) for part in (left, *others)]
            if None in operands:
                return None
            pairs = zip(ops, operands, operands[1:], strict=False)
            return all(_COMPARE[type(op)](one, other) for op, one, other in pairs)
    raise AssertionError(node)


def _operand(node: ast.expr, value: Names) -> Value | None:
    match node:
        case ast.Name(id=name):
            return value(name)
        case ast.UnaryOp(operand=ast.Constant(value=float() | int() as number)):
            return -number
        case ast.Constant(value=str() | float() | int() as constant):
            return constant
    raise AssertionError(node)
