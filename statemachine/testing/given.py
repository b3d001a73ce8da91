"""What a test of a machine was given to work with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from statemachine.definition.machine import Machine
from statemachine.execution.resources import Resources
from statemachine.testing.watch import Addresses, State


@dataclass(frozen=True, slots=True)
class Given:
    """What `machine_rules` was given."""

    machine: Machine[Any]
    resources: Resources[Any]
    state: State[Any]
    pinned: Addresses[Any]
    may_raise: type[Exception] | tuple[type[Exception], ...]
    max_steps: int
    must_end: bool
    close: Callable[[Any], None]


def addresses_of(pinned: Callable[[Any], Mapping[str, int] | Iterable[int]] | None) -> Addresses[Any]:
    """The addresses that `pinned` gives, by name; unless it is given, those of the arrays in `__pinned__`."""
    if pinned is None:
        return _arrays
    given = pinned

    def named(context: Any) -> Mapping[str, int]:
        found = given(context)
        return found if isinstance(found, Mapping) else {str(n): address for n, address in enumerate(found)}

    return named


def _arrays(context: Any) -> Mapping[str, int]:
    """Where the arrays among the pinned fields of a context are."""
    found = {}
    for name in getattr(type(context), "__pinned__", ()):
        interface = getattr(getattr(context, name, None), "__array_interface__", None)
        if interface:
            found[name] = interface["data"][0]
    return found
