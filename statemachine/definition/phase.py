"""Phases: the states of a machine, which do work (`run`) and keep the books (`apply`)."""

import re
from enum import StrEnum
from typing import Any, Generic, TypeVar, get_args, get_origin

from transitions import State

Context = TypeVar("Context")
Outcome = TypeVar("Outcome")


def declared_outcome(owner: type, base: type) -> Any:
    """The outcome type that a class declares as the last parameter of its generic `base`; Any if it declares none."""
    for ancestor in owner.__mro__:
        for generic in getattr(ancestor, "__orig_bases__", ()):
            origin = get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, base):
                declared = get_args(generic)[-1]
                if not isinstance(declared, TypeVar):
                    return declared
    return Any


class Status(StrEnum):
    """Where a run stands in its life: ready -> running <-> paused -> done | failed | cancelled."""

    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (Status.DONE, Status.FAILED, Status.CANCELLED)


class Phase(State, Generic[Context, Outcome]):
    """A state that works on a context in two halves.

    `run` does the work and may touch devices, files or clocks, but changes no host field of the context; what the
    work found out is its outcome. `apply` enters the outcome in the context: pure host bookkeeping, so that a
    recorded run can be walked again by `apply` alone.

    Parameters
    ----------
    name
        Unique within a machine; unless given, the class name in snake_case.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower())

    def digest(self, context: Context) -> Any:
        """A summary, in plain JSON values, of what `run` left in the buffers; None: there is none."""
        return None

    def explain(self, recorded: Any, replayed: Any) -> dict[str, Any]:
        """What a reader should know about two digests that differ."""
        return {}

    def run(self, context: Context) -> Outcome | None:
        """Do the work, and say what came of it: something that JSON can hold, if the run is to be recorded (no NaN).

        None means that there is nothing to enter in the context: `apply` is not called.
        """
        return None

    def apply(self, context: Context, outcome: Outcome) -> None:
        """Enter an outcome of `run` in the context."""
        raise TypeError(f"phase {self.name!r} returned {outcome!r} from run() but has no apply() to enter it")

    def __repr__(self) -> str:
        return f"<phase {self.name}>"


class End(Phase[Context, None]):
    """A final phase: a run that reaches it has ended, with this status."""

    def __init__(self, name: str, *, status: Status = Status.DONE) -> None:
        if not status.ended or status is Status.FAILED:
            raise ValueError(f"an end is {Status.DONE!r} or {Status.CANCELLED!r}, not {status!r}")
        super().__init__(name)
        self.final = True
        self.status = status
