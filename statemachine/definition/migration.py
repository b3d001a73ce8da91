"""How records of an earlier version of a machine are to be read: frozen data, and pure functions over outcomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Migration:
    """From records of `version` to those of the next one.

    Parameters
    ----------
    version
        The version whose records it reads; it makes them records of `version + 1`.
    phases, guards, signals, edits, errors
        New names by old ones, for what was renamed; guards are choices too, errors the exceptions that ways are for.
    outcomes
        For phases, edits and signals, by their old name: a pure function from an outcome, or what a signal carried, as
        it stands in the record (plain JSON values) to one of the next version, plain JSON values too.
    context
        A pure function from the context's host fields by name, as they stand in the record, to those of the next
        version.
    """

    version: int
    phases: Mapping[str, str] = field(default_factory=dict)
    guards: Mapping[str, str] = field(default_factory=dict)
    signals: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    outcomes: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    context: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
