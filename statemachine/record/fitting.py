"""Which values are what their type declares to the letter, cannot change, and come back from JSON as they are.

A look at their JSON would say the same, and takes four times as long.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from enum import Enum, Flag
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

SMALLEST, LARGEST = 2**63, 2**64  # between minus the one and the other is an integer that every reader knows
LONGEST = 1000  # characters of a text that fits, so that a line of JSON holds all that does

Test = Callable[[Any], bool]


def _never(value: Any) -> bool:
    return False


def _is_bool(value: Any) -> bool:
    return value is True or value is False


def _is_none(value: Any) -> bool:
    return value is None


def _is_int(value: Any) -> bool:
    return type(value) is int and -SMALLEST <= value < LARGEST


def _is_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return type(value) is str and value.isascii() and len(value) <= LONGEST


ATOMS: dict[Any, Test] = {
    bool: _is_bool,
    int: _is_int,
    str: _is_text,
    float: _is_float,
    None: _is_none,
    NoneType: _is_none,
}


def fits_of(declared: Any) -> Test:
    """What tells that a value fits this type: for certain, if it says so; if not, it may still be of that type."""
    try:
        msgspec.json.Decoder(declared)
    except Exception:  # of two classes that JSON cannot tell apart, say, or a name that its module does not know
        return _never
    return _test_of(declared)


def _test_of(declared: Any, above: tuple[Any, ...] = ()) -> Test:
    """The same of a type that a record can hold; `above` are the classes that a field of this type is in."""
    origin = get_origin(declared)
    if declared is Any:
        return _any(list(ATOMS.values()))
    if origin in (Union, UnionType):
        return _any([_test_of(one, above) for one in get_args(declared)])
    if origin is Literal:
        return _literal(get_args(declared))
    if origin is tuple and ... not in get_args(declared):
        return _tuple([_test_of(part, above) for part in get_args(declared)])
    if any(declared is atom for atom in ATOMS):  # some types cannot be hashed
        return ATOMS[declared]
    if not isinstance(declared, type) or declared in above:
        return _never
    if issubclass(declared, Enum):
        return _member(declared)
    return _dataclass(declared, (*above, declared))


def _any(tests: Sequence[Test]) -> Test:
    def fits(value: Any) -> bool:
        for test in tests:  # noqa: SIM110  # any() would take three times as long
            if test(value):
                return True
        return False

    return fits


def _literal(values: Sequence[Any]) -> Test:
    if not all(any(test(value) for test in (_is_text, _is_int, _is_none)) for value in values):
        return _never
    kinds = set(map(type, values))
    return lambda value: type(value) in kinds and value in values


def _member(kind: type[Enum]) -> Test:
    if issubclass(kind, Flag) or not all(_is_text(one.value) or _is_int(one.value) for one in kind):
        return _never
    return lambda value: type(value) is kind


def _tuple(tests: Sequence[Test]) -> Test:
    def fits(value: Any) -> bool:
        if type(value) is not tuple or len(value) != len(tests):
            return False
        for test, part in zip(tests, value, strict=True):  # noqa: SIM110  # all() would take three times as long
            if not test(part):
                return False
        return True

    return fits


def _dataclass(kind: type, above: tuple[Any, ...]) -> Test:
    """Of one that is frozen, and no more than its fields, which are all that makes it."""
    if not dataclasses.is_dataclass(kind):
        return _never
    fields = dataclasses.fields(kind)
    names = [field.name for field in fields]
    if (
        not kind.__dataclass_params__.frozen  # type: ignore[attr-defined]  # it is a dataclass
        or hasattr(kind, "__post_init__")
        or set(names) != set(kind.__dataclass_fields__)  # InitVar and ClassVar are there, too
        or not names
        or not all(field.init and not field.name.startswith("_") for field in fields)
        or any(base is not object and not dataclasses.is_dataclass(base) for base in kind.__mro__)
    ):
        return _never
    hints = get_type_hints(kind, include_extras=True)
    tests = [(attrgetter(name), _test_of(hints[name], above)) for name in names]
    count = len(names) if kind.__dictoffset__ else 0

    def fits(value: Any) -> bool:
        if type(value) is not kind or (count and len(value.__dict__) != count):
            return False
        try:
            for part, test in tests:
                if not test(part(value)):
                    return False
        except AttributeError:  # a field that was never set
            return False
        return True

    return fits
