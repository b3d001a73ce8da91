"""Values that JSON holds exactly: what a record keeps of outcomes and contexts, and how it is compared."""

import inspect
import math
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any

import msgspec

from statemachine.definition.phase import Phase, declared_outcome
from statemachine.definition.table import Edit, Signal, words_of
from statemachine.errors import JournalError, OutcomeError
from statemachine.record.fitting import LARGEST, SMALLEST, Test, fits_of

MAX_LINE = 16 * 2**20  # bytes; a longer line is no record of ours
MAX_OUTCOME = MAX_LINE - 2**20  # bytes
SHORT = 100_000  # so many integers fit into any line
SIMPLE = {str, bool, type(None)}
NOT_OF_THE_TYPE = (msgspec.ValidationError, TypeError, ValueError, RecursionError, OverflowError)
NOT_BY_FIELDS = (str, int, float, list, tuple, dict, set, frozenset, bytes, bytearray, memoryview, Enum)

Owner = Phase[Any, Any] | Edit[Any, Any] | Signal[Any, Any]

encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="deterministic")
_encode = encoder.encode


def check(outcome: Any) -> None:
    """Raise OutcomeError unless an outcome comes back from a record as it went in (up to its type, see `typed`)."""
    kind = type(outcome)  # first what phases give most: this is called at every step
    if kind is int and -SMALLEST <= outcome < LARGEST:
        return
    if (
        (kind is tuple or kind is list) and len(outcome) < SHORT and set(map(type, outcome)) == {int}
        and min(outcome) >= -SMALLEST and max(outcome) < LARGEST
    ):  # fmt: skip
        return
    _checked(outcome)


def _checked(outcome: Any) -> bytes:
    """An outcome as a record holds it; raises OutcomeError if it would not come back as it went in."""
    encoded = b""
    try:
        encoded = _encode(outcome)
        complaint = _complaint(outcome)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        complaint = str(error)
    else:
        if len(encoded) > MAX_OUTCOME:
            raise OutcomeError(
                f"the outcome is {len(encoded)} bytes long, a record holds at most {MAX_OUTCOME}: keep what is large "
                f"in a buffer or a file, and let the outcome say where"
            )
    if complaint:
        raise OutcomeError(
            f"JSON cannot hold the outcome {shown(outcome)}: {shown(complaint)}; make it of finite numbers of 64 bits, "
            f"text, lists and dataclasses"
        )
    return encoded


def _complaint(value: Any) -> str | None:
    """What of a value JSON would change, if anything."""
    kind = type(value)
    if kind in SIMPLE:
        return None
    if names := _fields_of(kind):  # type: ignore[arg-type]  # a class can be hashed
        return _first_complaint([getattr(value, name, None) for name in names])
    if isinstance(value, str):
        return None
    if isinstance(value, Enum):
        return _complaint(value.value)
    if isinstance(value, int):
        return None if -SMALLEST <= value < LARGEST else "a number of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is no JSON number; say it by None or by a word"
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        if kinds == {int}:
            return _complaint(min(value)) or _complaint(max(value))
        return None if kinds <= SIMPLE else _first_complaint(value)
    if isinstance(value, dict):
        if not (all(isinstance(key, str) for key in value) or all(type(key) is int for key in value)):
            return "the keys of a dict are all text or all integers"
        return _first_complaint(value) or _first_complaint(value.values())
    if isinstance(value, set | frozenset):
        return f"a {kind.__name__} has no order; make it a sorted list"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{kind.__name__} are no text; decode them, or make them a list"
    return None


def _first_complaint(values: Iterable[Any]) -> str | None:
    for value in values:
        if type(value) not in SIMPLE and (complaint := _complaint(value)):
            return complaint
    return None


def _parts(value: Any) -> list[Any]:
    """The values of the fields of a dataclass or a msgspec Struct; none of anything else."""
    return [getattr(value, name, None) for name in _fields_of(type(value))]  # type: ignore[arg-type]


@cache
def _fields_of(kind: type) -> tuple[str, ...]:
    """The names of those fields; none of what JSON holds as something else."""
    if issubclass(kind, NOT_BY_FIELDS):
        return ()
    return tuple(getattr(kind, "__struct_fields__", ()) or getattr(kind, "__dataclass_fields__", ()))


def alike(first: Any, second: Any) -> bool:
    """Whether two values are made alike, to the types of all their parts: a list is no tuple."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return alike(list(first), list(second)) and alike(list(first.values()), list(second.values()))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(alike, first, second))
    if parts := _parts(first):
        return alike(parts, _parts(second))
    return bool(first == second)


def plain(value: Any) -> Any:
    """A value as it looks after it has been written to a journal and read again."""
    return msgspec.json.decode(_encode(value))


def same(first: Any, second: Any) -> bool:
    """Whether two values are the same to the letter: 16 is not 16.0."""
    return _canonical.encode(first) == _canonical.encode(second)


def typed(value: Any, owner: Owner) -> Any:
    """What a journal says an outcome or payload was, in the type that is declared; JournalError if it has none such."""
    if value is None and not isinstance(owner, Signal):
        return None
    try:
        return _as_declared(value, owner)
    except NOT_OF_THE_TYPE as error:
        kind = "payload of signal" if isinstance(owner, Signal) else "outcome of"
        raise JournalError(f"{shown(value)} is no {kind} {owner.name!r}: {shown(str(error))}") from error


def given(value: Any, owner: Phase[Any, Any] | Signal[Any, Any]) -> Any:
    """An outcome or payload that comes from outside, in the type that its phase or signal declares, whatever is in it.

    Raises
    ------
    OutcomeError
        When it is not of that type, or JSON cannot hold it, or the signal carries nothing.
    """
    if _fits(type(owner))(value):  # type: ignore[arg-type]  # a class can be hashed
        return value
    if isinstance(owner, Signal) and not owner.carries:
        raise OutcomeError(f"signal {owner.name!r} carries no payload, but {shown(value)} came: send it without")
    encoded = _checked(value)
    try:
        return _as_declared(msgspec.json.decode(encoded), owner)
    except NOT_OF_THE_TYPE as error:
        kind = "payload of signal" if isinstance(owner, Signal) else "answer to"
        takes = f"which takes {shown(words_of(declared(owner)))}: {shown(str(error))}"
        raise OutcomeError(f"{shown(value)} is no {kind} {owner.name!r}, {takes}") from error


def _as_declared(value: Any, owner: Owner) -> Any:
    """Plain JSON values in the type that is declared for them."""
    return msgspec.convert(value, declared(owner), str_keys=True)


@cache
def _fits(owner: type) -> Test:
    """What tells that a value need not be looked at closely, of a class of phases or signals."""
    return fits_of(_declared(owner))


def declared(owner: Owner) -> Any:
    """The type of what a phase, an edit or a signal has for `apply`."""
    return _declared(type(owner))  # type: ignore[arg-type]  # a class can be hashed


@cache
def _declared(owner: type) -> Any:
    if issubclass(owner, Signal):
        return declared_outcome(owner, Signal) if owner.apply is not Signal.apply else NoneType
    return declared_outcome(owner, Phase if issubclass(owner, Phase) else Edit)


def fields(context: Any, saved: Mapping[Any, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The host fields of a context as plain JSON values by name, and the names of those that JSON cannot hold."""
    held, opaque = {}, []
    for name, value in saved.items():
        try:
            check(value)
            if not isinstance(name, str) and not isinstance(context, list):
                raise OutcomeError(f"a name in JSON is text, not {name!r}")
            held[str(name)] = plain(value)
        except OutcomeError:
            opaque.append(shown(str(name)))
    return held, tuple(opaque)


def typed_fields(context: Any, held: Mapping[str, Any]) -> dict[Any, Any]:
    """Host fields from plain JSON values, in the types that the context's class declares.

    Raises
    ------
    JournalError
        When a value has not the type of its field.
    """
    if isinstance(context, list):
        if list(held) != [str(number) for number in range(len(held))]:
            raise JournalError(f"{shown(list(held))} are not the places of a list")
        return dict(enumerate(held.values()))
    found = {}
    for name, value in held.items():
        try:
            found[name] = msgspec.convert(value, _annotation(type(context), name), str_keys=True)
        except NOT_OF_THE_TYPE as error:
            owner = type(context).__name__
            raise JournalError(
                f"field {shown(name)!r} of {owner} cannot be {shown(value)}: {shown(str(error))}"
            ) from error
    return found


def _annotation(owner: type, name: str) -> Any:
    """The type that a class declares for a field; Any if it declares none that can be found out."""
    for ancestor in owner.__mro__:
        declared = inspect.get_annotations(ancestor).get(name)
        if declared is None:
            continue
        if not isinstance(declared, str):
            return declared
        try:
            return eval(declared, vars(sys.modules[ancestor.__module__]), dict(vars(ancestor)))  # noqa: S307  # its source
        except Exception:
            return Any
    return Any


def shown(value: Any, length: int = 200) -> str:
    """A value as a message shows it: on one line, not too long, control characters escaped."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # too deep, say
        text = f"<{type(value).__name__}>"
    kept = (c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text[:length])
    return "".join(kept) + "..." * (len(text) > length)
