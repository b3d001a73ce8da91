"""What others ask of a run: a pause, and signals that wait for a phase that takes them."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from statemachine.execution.loop import Cursor
from statemachine.execution.timeline import Event, Timeline

Context = TypeVar("Context")


@dataclass(frozen=True, slots=True)
class Possible:
    """What may be sent to a run now, by name: its buttons, as it were."""

    signals: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Sent:
    """A signal on its way, what it carries, and the event that it became."""

    name: str
    payload: Any = None
    event: Event | None = None

    def entered(self, timeline: Timeline[Any]) -> bool:
        """Whether it became an event before an interrupt kept it from being taken out."""
        return bool(self.event and timeline.events and timeline.events[-1] is self.event)


class Inbox(Generic[Context]):
    """Filled by any thread, emptied by the one that moves the run; its cursor then looks up at the next boundary.

    Attributes
    ----------
    waiting
        The signals that wait, in the order in which they were sent.
    fresh
        Whether something was sent since the run last looked.
    """

    __slots__ = ("_cursor", "fresh", "pause", "waiting")

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self.waiting: deque[Sent] = deque()
        self.pause = self.fresh = False

    @property
    def sent(self) -> tuple[Sent, ...]:
        """The signals that wait now, as others may send more meanwhile."""
        return tuple(self.waiting.copy())

    def send(self, sent: Sent) -> None:
        """Let a signal wait to be taken."""
        self.waiting.append(sent)
        self.fresh = self._cursor.attention = True

    def take_out(self, sent: Sent) -> bool:
        """Let a signal wait no more; whether it still did."""
        try:
            self.waiting.remove(sent)
        except ValueError:
            return False
        return True

    def ask_to_pause(self) -> None:
        """Let the run rest at the next boundary."""
        self.pause = True
        self._cursor.attention = True

    def remind(self) -> None:
        """Let the cursor look up, if there is anything to look at."""
        if self.waiting or self.pause:
            self._cursor.attention = True
