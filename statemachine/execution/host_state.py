"""Saves and restores the host fields of any context in place, leaving what is pinned (buffers, engines) alone.

A class names the fields that are never copied in `__pinned__`, a tuple of field names.
"""

import copy
from collections.abc import Iterator
from typing import Any


def save(context: Any) -> dict[Any, Any]:
    """A deep copy of the context's host fields.

    Raises
    ------
    TypeError
        When a field cannot be copied; it should be named in the context's `__pinned__`.
    """
    pinned = set(getattr(type(context), "__pinned__", ()))
    memo = _pinned(context)  # shared, so that two fields that hold one object still do in the copy
    saved = {}
    for name, value in _fields(context):
        if name in pinned:
            continue
        try:
            saved[name] = copy.deepcopy(value, memo)
        except Exception as error:
            raise TypeError(
                f"field {name!r} of {type(context).__name__} cannot be copied ({error}); if it is a resource rather "
                f"than state, name it in {type(context).__name__}.__pinned__"
            ) from error
    return saved


def restore(context: Any, saved: dict[Any, Any]) -> None:
    """Give the context's host fields the saved values (copies of them, so that `saved` can be used again)."""
    _assign(context, copy.deepcopy(saved, _pinned(context)))


def scratch(context: Any, saved: dict[Any, Any]) -> Any:
    """A second context, with the saved host fields and the pinned ones of the first: to work out what is to be."""
    other = copy.copy(context)
    restore(other, saved)
    return other


def adopt(context: Any, other: Any) -> None:
    """Give the context the host fields that a scratch context came to, which is not used any more."""
    pinned = set(getattr(type(context), "__pinned__", ()))
    _assign(context, {name: value for name, value in _fields(other) if name not in pinned})


def _pinned(context: Any) -> dict[int, Any]:
    """A memo that makes copies share what is pinned."""
    values = (getattr(context, name, None) for name in getattr(type(context), "__pinned__", ()))
    return {id(value): value for value in values if value is not None}


def _assign(context: Any, fresh: dict[Any, Any]) -> None:
    if isinstance(context, dict):
        context.clear()
        context.update(fresh)
    elif isinstance(context, list):
        context[:] = [fresh[number] for number in range(len(fresh))]
    else:
        pinned = set(getattr(type(context), "__pinned__", ()))
        for name, _ in list(_fields(context)):
            if name not in pinned and name not in fresh:
                delattr(context, name)
        for name, value in fresh.items():
            object.__setattr__(context, name, value)


def _fields(context: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(context, dict):
        yield from context.items()
    elif isinstance(context, list):
        yield from enumerate(context)
    else:
        for owner in type(context).__mro__:
            slots = owner.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(context, name):
                    yield name, getattr(context, name)
        yield from getattr(context, "__dict__", {}).items()
