"""Whether a condition holds, given the values of its names: in Kleene's logic, where some things are neither."""

import ast
import operator
from collections.abc import Callable
from itertools import pairwise
from numbers import Real
from typing import Any

from phases.debugger.values import part

Names = Callable[[str], Any]  # gives a name its present value; None: it has none here

COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip


def truth_of(node: ast.expr, value: Names) -> bool | None:
    """The truth of a condition that was checked; None is neither true nor false."""
    match node:
        case ast.BoolOp(op=op, values=values):
            decisive = isinstance(op, ast.Or)
            truths = [truth_of(joined, value) for joined in values]
            if decisive in truths:
                return decisive
            return None if None in truths else not decisive
        case ast.UnaryOp(operand=negated):
            truth = truth_of(negated, value)
            return None if truth is None else not truth
        case ast.BinOp(left=left, right=right):
            return _contains(_operand(left, value), _operand(right, value))
        case ast.Compare(left=left, ops=ops, comparators=others):
            operands = [_operand(one, value) for one in (left, *others)]
            pairs = list(pairwise(operands))
            if not all(_comparable(one, other) for one, other in pairs):
                return None
            return all(COMPARE[type(op)](one, other) for op, (one, other) in zip(ops, pairs, strict=True))
    raise AssertionError(node)


def _comparable(one: Any, other: Any) -> bool:
    return any(isinstance(one, kind) and isinstance(other, kind) for kind in (Real, str))


def _contains(whole: Any, wanted: Any) -> bool | None:
    if isinstance(whole, str):
        return wanted in whole if isinstance(wanted, str) else None
    if not isinstance(whole, list | tuple | set | frozenset | dict) or wanted is None:
        return None
    try:
        return any(_comparable(one, wanted) and bool(one == wanted) for one in whole)
    except Exception:  # of a class whose == is odd
        return None


def _operand(node: ast.expr, value: Names) -> Any:
    match node:
        case ast.Name(id=name):
            return value(name)
        case ast.Attribute(value=owner, attr=name):
            return part(_operand(owner, value), name)
        case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
            return _item(_operand(owner, value), key)
        case ast.Call(args=[owner]):
            whole = _operand(owner, value)
            return len(whole) if isinstance(whole, list | tuple | set | frozenset | dict | str | bytes) else None
        case ast.UnaryOp(operand=ast.Constant(value=float() | int() as number)):
            return -number
        case ast.Constant(value=str() | float() | int() as constant):
            return constant
    raise AssertionError(node)


def _item(owner: Any, key: Any) -> Any:
    try:
        return owner[key] if isinstance(owner, list | tuple | dict) else None
    except (LookupError, TypeError):
        return None
