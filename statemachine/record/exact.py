"""Values that JSON holds exactly: what a record keeps of outcomes and contexts, and how it is compared."""

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from statemachine.definition.phase import Phase, declared_outcome
from statemachine.definition.table import Edit
from statemachine.errors import JournalError, OutcomeError

MAX_LINE = 64 * 2**20  # bytes; a longer line is no record of ours
MAX_OUTCOME = MAX_LINE - 2**20  # bytes

encoder = msgspec.json.Encoder()
_canonical = msgspec.json.Encoder(order="deterministic")
_encode = encoder.encode


def check(outcome: Any) -> None:
    """Raise OutcomeError unless an outcome comes back from a record as it went in (up to its type, see `typed`)."""
    try:
        text = _encode(outcome)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise OutcomeError(
            f"JSON cannot hold the outcome {shown(outcome)}: {error}; make it of numbers, text, lists and dataclasses"
        ) from error
    if len(text) > MAX_OUTCOME:
        raise OutcomeError(
            f"the outcome is {len(text)} bytes long, a record holds at most {MAX_OUTCOME}: keep what is large in a "
            f"buffer or a file, and let the outcome say where"
        )
    if b"null" in text and _holds_odd_number(msgspec.to_builtins(outcome)):  # which JSON would call null
        raise OutcomeError(
            f"JSON cannot hold the outcome {shown(outcome)}: NaN and infinity are no JSON numbers; say it by None or "
            f"by a word"
        )


def plain(value: Any) -> Any:
    """A value as it looks after it has been written to a journal and read again."""
    return msgspec.json.decode(_encode(value))


def same(first: Any, second: Any) -> bool:
    """Whether two values are the same to the letter: 16 is not 16.0."""
    return _canonical.encode(first) == _canonical.encode(second)


def typed(value: Any, owner: Phase[Any, Any] | Edit[Any, Any]) -> Any:
    """An outcome read from a journal, in the type that its phase or edit declares; JournalError if it has none such."""
    if value is None:
        return None
    try:
        return msgspec.convert(value, declared_outcome(type(owner), Phase if isinstance(owner, Phase) else Edit))
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise JournalError(f"{shown(value)} is no outcome of {owner.name!r}: {error}") from error


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
        When a value has not the type of its field, or would not be the same again.
    """
    if isinstance(context, list):
        return {int(name): value for name, value in held.items()}
    found = {}
    for name, value in held.items():
        declared = _annotation(type(context), name)
        try:
            found[name] = msgspec.convert(value, declared, str_keys=True)
        except (msgspec.ValidationError, TypeError, ValueError, RecursionError, OverflowError) as error:
            owner = type(context).__name__
            raise JournalError(f"field {name!r} of {owner} cannot be {shown(value)}: {error}") from error
        if not same(plain(found[name]), value):
            raise JournalError(f"field {name!r} of {type(context).__name__} would not be {shown(value)} again")
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
    text = value if isinstance(value, str) else repr(value)
    kept = (c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text[:length])
    return "".join(kept) + "..." * (len(text) > length)


def _holds_odd_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_holds_odd_number, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_odd_number, value))
