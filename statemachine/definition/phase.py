"""Phases: the states of a machine, which do work (`run`), or wait for others to, and keep the books (`apply`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

from transitions import State

from statemachine.definition.raised import Raised

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


def enters_none(phase: "Phase[Any, Any]") -> bool:
    """Whether None is one of several outcomes that a phase declares, and so is entered like the others."""
    declared = declared_outcome(type(phase), Phase)
    return get_origin(declared) in (Union, UnionType) and type(None) in get_args(declared)


class Status(StrEnum):
    """Where a run stands in its life: ready -> running <-> paused | waiting -> done | failed | cancelled."""

    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    WAITING = "waiting"  # paused at a `Wait`, for its answer
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __init__(self, word: str) -> None:
        self.over = word in ("done", "cancelled")  # come to an end: a run that failed has not, it can be tried again
        self.ended = self.over or word == "failed"  # goes no further by itself


@dataclass(frozen=True, slots=True)
class Failed:
    """What `Phase.run_many` gives for a run whose work failed, and its alone."""

    error: Exception


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
        """A summary, in plain JSON values, of what `run` left in the buffers; None: there is none.

        It is not asked for where `run` raised.
        """
        return None

    def explain(self, recorded: Any, replayed: Any) -> dict[str, Any]:
        """What a reader should know about two digests that differ."""
        return {}

    def run(self, context: Context) -> Outcome | None:
        """Do the work, and say what came of it: something that JSON can hold, if the run is to be recorded (no NaN).

        None means that there is nothing to enter in the context, and `apply` is not called, unless the class declares
        that None is one of several outcomes, as `Phase[Cart, Coupon | None]` does.
        """
        return None

    def run_many(self, contexts: Sequence[Context]) -> Sequence[Outcome | Failed | None]:
        """Do the work of several runs that an `Ensemble` drives, in one call; override it where that is cheaper.

        Gives what `run` would give for each context, in their order, and `Failed` where it would raise; no outcome may
        depend on who else is there. It may do the work of the first ones only, at least of one, and give as many
        outcomes: the others stay first in line for the next turn. What it raises itself is raised for all of them.
        """
        outcomes: list[Outcome | Failed | None] = []
        for context in contexts:
            try:
                outcomes.append(self.run(context))
            except Exception as error:
                outcomes.append(Failed(error))
        return outcomes

    def apply(self, context: Context, outcome: Outcome) -> None:
        """Enter an outcome of `run` in the context."""
        raise TypeError(f"phase {self.name!r} returned {outcome!r} from run() but has no apply() to enter it")

    def apply_error(self, context: Context, raised: Raised) -> None:
        """Enter in the context what `run` raised, when a way of the table is for it: host bookkeeping, as in `apply`.

        Unless overridden, nothing is entered.
        """

    def __repr__(self) -> str:
        return f"<phase {self.name}>"


class Wait(Phase[Context, Outcome]):
    """A phase whose outcome comes from outside: a run that reaches it rests there until `Run.answer` gives it one.

    There is nothing to run. `apply` enters the answer, which is recorded, and taken from the record by a replay. One
    that no transition leaves waits for signals alone, and takes no answer.
    """

    def deadline(self, context: Context) -> float | None:
        """When the host should stop waiting and answer with `late`, in seconds since the epoch; None: never.

        Of the context alone: what time it was comes from outside too, with a request, an edit or an earlier answer.
        """
        return None

    def late(self, context: Context) -> Outcome:
        """The answer once the deadline has passed."""
        raise NotImplementedError(f"phase {self.name!r} has a deadline, but no late() that says what then")


class End(Phase[Context, None]):
    """A final phase: a run that reaches it has ended, with this status."""

    def __init__(self, name: str, *, status: Status = Status.DONE) -> None:
        if not status.over:
            raise ValueError(f"an end is {Status.DONE!r} or {Status.CANCELLED!r}, not {status!r}")
        super().__init__(name)
        self.final = True
        self.status = status
