"""Whether two values are the same, whatever they are made of: arrays, NaN, and objects that define no equality."""

from collections.abc import Iterator, Mapping
from typing import Any

MISSING = "nothing"
LONG = 80  # characters of a value that a message shows


def same(first: Any, second: Any) -> bool:
    """Whether two values hold the same things, so that one could be a copy of the other."""
    return _same(first, second, set())


def differences(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> list[str]:
    """The entries that differ, in words: `field 'count' (3, then 7)`."""
    names = [*first, *(name for name in second if name not in first)]
    return [
        f"field {name!r} ({shown(first.get(name, MISSING))}, then {shown(second.get(name, MISSING))})"
        for name in names
        if name not in first or name not in second or not same(first[name], second[name])
    ]


def shown(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= LONG else f"{text[: LONG // 2]} ... {text[-LONG // 2 :]}"


def _same(first: Any, second: Any, seen: set[tuple[int, int]]) -> bool:
    if first is second or (id(first), id(second)) in seen:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, float):
        return bool(first == second) or (first != first and second != second)
    if isinstance(first, str | bytes | int | complex | None | type):
        return bool(first == second)
    seen = seen | {(id(first), id(second))}
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(_same(a, b, seen) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key], seen) for key in first)
    if hasattr(first, "__array_interface__"):
        return bool(first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes())
    if getattr(type(first), "__eq__") != object.__eq__:  # noqa: B009  # which a type checker takes for a method
        try:
            return bool(first == second)
        except Exception:  # an equality that is none, e.g. of a dataclass that holds arrays
            return _parts_same(first, second, seen)
    return _parts_same(first, second, seen)


def _parts_same(first: Any, second: Any, seen: set[tuple[int, int]]) -> bool:
    try:
        return _same(list(_parts(first)), list(_parts(second)), seen)
    except Exception:  # it cannot be taken apart, so it is a thing rather than a value
        return False


def _parts(value: Any) -> Iterator[Any]:
    """What a copy of the value is made of."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        yield reduced
        return
    for part in reduced:
        yield list(part) if isinstance(part, Iterator) else part
