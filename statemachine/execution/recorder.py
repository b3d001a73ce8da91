"""What a run tells somebody who records it; who that is, and how it is written, is none of the run's business."""

from collections.abc import Sequence
from typing import Any, Protocol

from statemachine.definition.machine import Machine
from statemachine.definition.phase import Status
from statemachine.execution.resources import Resources
from statemachine.execution.timeline import Event, Timeline


class Account(Protocol):
    """What a recorder may ask of a run: what it is, where it stands, and its past in plain columns."""

    id: str
    request: Any
    digest_every: int
    forked_from: str | None
    resumed: dict[str, Any] | None
    began: dict[str, Any] | None
    resources: Resources[Any]

    @property
    def machine(self) -> Machine[Any]: ...
    @property
    def context(self) -> Any: ...
    @property
    def timeline(self) -> Timeline[Any]: ...
    @property
    def status(self) -> Status: ...
    @property
    def phase_name(self) -> str: ...
    @property
    def step_count(self) -> int: ...
    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def sent(self) -> tuple[tuple[str, Any], ...]: ...


class Recorder(Protocol):
    """Is told of a run whenever it rests, and at least every 50 ms while it does not.

    Attributes
    ----------
    every_step
        Whether to be told after each step, before the next phase runs.
    """

    every_step: bool

    def attach(self, run_id: str) -> None:
        """A run of this id is to be recorded; raises if that is not possible, because another one already is."""
        ...

    def accept(self, outcome: Any) -> None:
        """Raise ValueError or TypeError, before anything has changed, if this outcome cannot be recorded."""
        ...

    def write(self, account: Account, error: BaseException | None = None, *, rests: bool = True) -> None:
        """Record all that has happened since the last call; `error` is what the run failed of.

        Parameters
        ----------
        rests
            The run is to rest here, rather than between two steps of a loop.
        """
        ...

    def close(self) -> None:
        """Nothing will be told any more."""
        ...
