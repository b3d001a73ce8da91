"""Any value as a short text: cut where it is large or deep, and never an error, whatever its class does."""

import dataclasses
import reprlib
from collections import deque
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from typing import Any

from statemachine.record import exact

MOST, DEEPEST = 6, 4  # parts of a container that are shown, and containers within each other
BITS = 256  # of the largest number that is written out
CUT = "…"
HIDDEN = "<hidden: its field has repr=False>"
_GENERATED = {dataclasses.__file__, reprlib.__file__}  # the files that the repr of a plain dataclass comes from


def short(value: Any, room: int = 80) -> str:
    """A value as text of at most so many characters, on one line."""
    text = " ".join(_text(value, room).split("\n"))
    return text if len(text) <= room else text[: max(0, room - 1)] + CUT


def same(old: Any, new: Any) -> bool:
    """Whether two values are the same, also where their classes do not say; in doubt they are not."""
    if old is new:
        return True
    try:
        equal = old == new
        if (bool(equal.all()) if hasattr(equal, "all") else equal is True) or exact.alike(old, new):
            return True
    except Exception:  # noqa: S110  # of a class whose == is odd; what can be seen of it decides
        pass
    one, other = short(old, 4000), short(new, 4000)
    return one == other and CUT not in one


def parts(value: Any) -> dict[str, Any]:
    """What an object or a dict holds, by name: without the call of any property."""
    if isinstance(value, dict):
        return {name if isinstance(name, str) else short(name): held for name, held in value.items()}
    if isinstance(value, list | tuple):
        return {str(number): held for number, held in enumerate(value)}
    found: dict[str, Any] = {}
    for owner in type(value).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found | getattr(value, "__dict__", {})


def part(owner: Any, name: str) -> Any:
    """One of those parts; None if there is none of this name."""
    try:
        return owner.get(name) if isinstance(owner, dict) else parts(owner).get(name)
    except Exception:  # of an odd class
        return None


def hidden(owner: Any) -> frozenset[str]:
    """The names of the fields that a dataclass keeps out of its repr."""
    fields = getattr(type(owner), "__dataclass_fields__", {})
    return frozenset(name for name, field in fields.items() if not field.repr)


def _text(value: Any, room: int, within: tuple[int, ...] = ()) -> str:
    """The text of a value that stands within these others, by their ids."""
    try:
        return _told(value, room, within)
    except Exception as error:  # what it says is the class's own, and may be what its repr was to hide
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _told(value: Any, room: int, within: tuple[int, ...]) -> str:
    kind = type(value)
    if isinstance(value, Enum):
        return f"{kind.__name__}.{value.name}"
    if isinstance(value, str | bytes | bytearray):
        rest = f"{CUT} {len(value)} in all" if len(value) > room else ""
        return repr(value[:room]) + rest
    if isinstance(value, int) and value.bit_length() > BITS:
        return f"<a number of {value.bit_length()} bits>"
    if hasattr(value, "dtype") and hasattr(value, "shape") and value.shape:
        return _array(value, room)
    if id(value) in within:
        return f"<the {kind.__name__} around it>"
    if isinstance(value, dict | list | tuple | set | frozenset | deque):
        return _container(value, room, within)
    if isinstance(value, type) or not _is_plain(kind):
        return repr(value)
    if len(within) == DEEPEST:
        return f"{kind.__name__}({CUT})"
    secret, inside = hidden(value), (*within, id(value))
    held = {name: one for name, one in parts(value).items() if name not in secret}
    pairs = (f"{name}={_text(one, room, inside)}" for name, one in held.items())
    return f"{kind.__name__}({_joined(pairs, len(held))})"


def _is_plain(kind: type) -> bool:
    """Whether a class has no repr of its own that would say more than its fields do."""
    its: Any = kind.__repr__
    return its is object.__repr__ or getattr(getattr(its, "__code__", None), "co_filename", "") in _GENERATED


def _container(value: Any, room: int, within: tuple[int, ...]) -> str:
    if isinstance(value, list | deque):
        begin, end = "[", "]"
    elif isinstance(value, tuple):
        begin, end = "(", ",)" if len(value) == 1 else ")"
    else:
        begin, end = "{", "}"
    inside = (*within, id(value))
    if len(within) == DEEPEST:
        texts: Iterable[str] = [CUT] if len(value) else []
    elif isinstance(value, dict):
        texts = (f"{_text(name, room, inside)}: {_text(one, room, inside)}" for name, one in value.items())
    else:
        texts = (_text(one, room, inside) for one in value)
    named = type(value).__name__ if type(value) not in (dict, list, tuple, set) else ""
    text = f"{begin}{_joined(texts, len(value))}{end}"
    return f"{named}({text})" if named else text


def _joined(texts: Iterable[str], count: int) -> str:
    shown = list(islice(texts, MOST))
    return ", ".join([*shown, f"{CUT} {count} in all"] if count > MOST and shown != [CUT] else shown)


def _array(value: Any, room: int) -> str:
    """An array by its shape and type; of one in this machine's memory, its first values too."""
    shape = "x".join(map(str, value.shape))
    first = ""
    if type(value).__module__ == "numpy":
        values = value.reshape(-1)[:MOST].tolist()
        first = f" [{_joined((_text(one, room) for one in values), value.size)}]"
    return f"<{type(value).__name__} {shape} {value.dtype}{first}>"
