"""What others ask of a run: a pause, and signals that wait for a phase that takes them."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from statemachine.definition.table import Signal
from statemachine.execution.loop import Cursor
from statemachine.execution.timeline import Event, Timeline

Context = TypeVar("Context")


@dataclass(slots=True, eq=False)
class Sent(Generic[Context]):
    """A signal on its way, and the event that it became."""

    signal: Signal[Context]
    event: Event | None = None

    def entered(self, timeline: Timeline[Context]) -> bool:
        """Whether it became an event before an interrupt kept it from being taken out."""
        return bool(self.event and timeline.events and timeline.events[-1] is self.event)


class Inbox(Generic[Context]):
    """Filled by any thread, emptied by the one that moves the run; its cursor then looks up at the next boundary."""

    __slots__ = ("_cursor", "pause", "sent")

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self.pause = False
        self.sent: deque[Sent[Context]] = deque()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the signals that wait."""
        return tuple(sent.signal.name for sent in self.sent)

    def send(self, signal: Signal[Context]) -> None:
        """Let a signal wait to be taken."""
        self.sent.append(Sent(signal))
        self._cursor.attention = True

    def ask_to_pause(self) -> None:
        """Let the run rest at the next boundary."""
        self.pause = True
        self._cursor.attention = True

    def remind(self) -> None:
        """Let the cursor look up, if there is anything to look at."""
        if self.sent or self.pause:
            self._cursor.attention = True
