"""What has happened in a run, in flat columns: the record in memory that steps, time travel and journals come from."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from statemachine.definition.machine import Machine
from statemachine.definition.phase import Phase, Status
from statemachine.definition.program import Arc, Program
from statemachine.definition.raised import Raised
from statemachine.definition.variable import Value
from statemachine.errors import IllegalMove

Context = TypeVar("Context")

MOST_FRAMES = 512
FEWEST_FRAMES = 3  # however heavy: a run that forgets needs one to begin at, behind the steps that it keeps
MOST_NS = 500_000_000  # of copying host states, all frames that are kept together


class Step(NamedTuple):
    """One step: the phase that ran, what it found out or what it raised, and where its guards sent the run.

    Two steps are equal that differ in their times alone.
    """

    number: int
    phase: str
    target: str
    guards: Mapping[str, Value]  # of guards and choices
    outcome: Any
    elapsed_ns: int
    raised: Raised | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and tuple(self._replace(elapsed_ns=0)) == tuple(other._replace(elapsed_ns=0))

    def __ne__(self, other: object) -> bool:
        return not self == other


_make = tuple.__new__  # a third of the time that Step() takes, at every answer


class Event(NamedTuple):
    """Something from outside, with the number of the step before which it took effect, or was refused."""

    number: int
    kind: str  # "signal" or "edit", or "refused": a signal that was sent, and had no effect
    name: str
    outcome: Any = None  # of an edit; what a signal carried
    reason: str = ""  # why it was refused


class Frame(NamedTuple):
    """The host fields of a run that rested after `number` steps and so many events, and the phase's index."""

    number: int
    at: int
    fields: dict[Any, Any]
    cost_ns: int = 0  # of copying the fields
    events: int = 0  # of all that there were
    amid: bool = False  # some of them took effect after those steps

    @property
    def moves(self) -> int:
        """How many steps and events lie before it."""
        return self.number + self.events


class Forgotten(NamedTuple):
    """What a timeline does not hold any more: where it all began, and how many events, cuts and digestible steps."""

    beginning: Frame | None = None  # None: nothing was forgotten
    events: int = 0
    cuts: int = 0
    digestible: int = 0


NOTHING = Forgotten()


class _Forgetting(NamedTuple):
    """What is to be when the past before a frame is forgotten."""

    origin: Frame
    stays: int  # steps
    events: list[Event]
    forgotten: Forgotten


@dataclass(slots=True)
class Timeline(Generic[Context]):
    """One entry a step in `arcs`, `outcomes` and `elapsed`; events beside them, in order. What a phase raised is an
    outcome, too, of an arc that says so.

    Steps are numbered from `origin.number` on: a run that was restored without its past, or that forgets its past, does
    not begin at 0. A step counts once its time is recorded. Every change is decided by one assignment, and `mend`
    carries out the rest of it if an interrupt came before its end.
    """

    machine: Machine[Context]
    program: Program[Context]
    origin: Frame | None = None  # where what is remembered begins; None before the run is first touched
    arcs: list[Arc] = field(default_factory=list)
    outcomes: list[Any] = field(default_factory=list)
    elapsed: list[int] = field(default_factory=list)  # ns a step; never compared
    events: list[Event] = field(default_factory=list)
    digests: dict[int, Any] = field(default_factory=dict)  # by number of the step; for as many as were asked for
    frames: list[Frame] = field(default_factory=list)  # on the way, so that no fold is long
    cuts: list[int] = field(default_factory=list)  # the places that the run went back to and on from, in order
    spacing: int = 2048  # steps and events from one frame to the next
    widest: int = 2**62  # the most that spacing may become
    rewound: int | None = None  # the number of steps, while the run rests in its own past
    ended_as: Status | None = None  # how the recorded run ended, also while it rests in its past
    forgotten: Forgotten = NOTHING
    _digestible: tuple[int, int] = (0, 0)  # how many steps were counted, and what they came to
    _cutting: tuple[int, int, list[Event]] | None = None  # the step, how many cuts there were, the events that stay
    _forgetting: _Forgetting | None = None

    @property
    def first(self) -> int:
        """The number of the first step."""
        return self.origin.number if self.origin else 0

    @property
    def count(self) -> int:
        """The number that the next step will have."""
        return (self.origin.number if self.origin else 0) + len(self.elapsed)

    def step(self, number: int) -> Step:
        """The step of this number; raises IllegalMove if it was forgotten."""
        place = number - self.first
        if place < 0:
            raise IllegalMove(f"there is no step {number} any more; what was before step {self.first} was not kept")
        return self._step(number, place)

    def last(self) -> Step:
        """The last step that was recorded."""
        return self._step(self.count - 1, -1)

    def _step(self, number: int, place: int) -> Step:
        arc, names = self.arcs[place], self.program.names
        guards = self.program.values_of(arc)
        found, elapsed_ns = self.outcomes[place], self.elapsed[place]
        outcome, raised = (None, found) if arc.raised else (found, None)
        return _make(Step, (number, names[arc.source], names[arc.target], guards, outcome, elapsed_ns, raised))

    def columns(self, first: int, last: int) -> tuple[Sequence[Arc], Sequence[Any], Sequence[int]]:
        """Arcs, outcomes and times (ns) of steps `first` up to `last`."""
        part = slice(first - self.first, last - self.first)
        return self.arcs[part], self.outcomes[part], self.elapsed[part]

    def events_before(self, number: int) -> list[Event]:
        """The events that took effect before the step before `number`."""
        return self.events[: bisect_left(self.events, number, key=lambda event: event.number)]

    @property
    def event_count(self) -> int:
        """How many events there are, with those that were forgotten."""
        return self.forgotten.events + len(self.events)

    def events_since(self, count: int) -> list[Event]:
        """The events after the first `count` of all that there were."""
        return self.events[count - self.forgotten.events :]

    @property
    def cut_count(self) -> int:
        """How many cuts there were, with those that were forgotten."""
        return self.forgotten.cuts + len(self.cuts)

    def cuts_since(self, count: int) -> list[int]:
        """The cuts after the first `count` of all that there were."""
        return self.cuts[count - self.forgotten.cuts :]

    @property
    def moves(self) -> int:
        """How many steps and events there were."""
        return self.count + self.event_count

    def frame_before(self, number: int, events: int) -> Frame:
        """The last frame that is not after so many steps and, of all that there were, so many events."""
        assert self.origin is not None
        place = bisect_right(self.frames, (number, events), key=lambda frame: (frame.number, frame.events))
        return self.frames[place - 1] if place else self.origin

    @property
    def wants_frame(self) -> bool:
        """Whether the last frame lies so far back that it is time for another, and the run rests at the end."""
        last = self.frames[-1] if self.frames else self.origin
        return last is not None and self.rewound is None and self.moves - last.moves >= self.spacing

    def frame(self, index: int, fields: dict[Any, Any], cost_ns: int) -> Frame:
        """A frame of the present, where the run rests at this phase and has these host fields."""
        count = self.count
        amid = self.events[-1].number == count if self.events else self.origin is not None and self.origin.amid
        return Frame(count, index, fields, cost_ns, self.event_count, amid)

    def keep(self, frame: Frame) -> None:
        """Keep a frame; when they are many or heavy, every other one goes and they come half as often."""
        self.frames.append(frame)
        count = len(self.frames)
        if count > MOST_FRAMES or (count > FEWEST_FRAMES and sum(frame.cost_ns for frame in self.frames) > MOST_NS):
            self.frames = self.frames[1::2]
            self.spacing = min(2 * self.spacing, self.widest)

    @property
    def whole(self) -> bool:
        """Whether every step is recorded to its end, and nothing is half forgotten."""
        return len(self.arcs) == len(self.outcomes) == len(self.elapsed) and not (self._cutting or self._forgetting)

    @property
    def here(self) -> int:
        """How many steps lie behind the place where the run rests."""
        if self.rewound is not None:
            return self.rewound
        return (self.origin.number if self.origin else 0) + len(self.elapsed)

    @property
    def events_here(self) -> list[Event]:
        """The events that took effect before the place where the run rests, or at it."""
        return list(self.events) if self.rewound is None else self.events_before(self.rewound)

    def enter(self, event: Event) -> None:
        """Record an event at the place where the run rests; what lay ahead of it is forgotten."""
        if self.rewound is None:
            self.events.append(event)
        else:
            self.cut(event)

    def cut(self, *events: Event) -> None:
        """Go on from the place where the run rests, with these events there: forget every step that lay ahead."""
        if self.rewound is not None:
            self._cutting = self.rewound, len(self.cuts), [*self.events_before(self.rewound), *events]
            self.mend()

    def forget(self, kept: int) -> None:
        """Forget what lies before the last frame behind which at least so many steps and events are.

        Whoever records the run has been told of all that lies there.
        """
        place = bisect_right(self.frames, self.moves - kept, key=lambda frame: frame.moves)
        if place:
            frame, before = self.frames[place - 1], self.forgotten
            gone, _, _ = self.columns(self.first, frame.number)
            self._forgetting = _Forgetting(
                frame, self.count - frame.number, self.events[frame.events - before.events :],
                Forgotten(
                    before.beginning or self.origin, frame.events, before.cuts + len(self.cuts),
                    before.digestible + self._digestible_among(gone),
                ),
            )  # fmt: skip
            self.mend()

    def mend(self) -> None:
        """Finish what an interrupt left half done: to forget, a cut, or a step that was not recorded to its end."""
        if self._forgetting is not None:
            self.origin, stays, self.events, self.forgotten = self._forgetting
            for column in (self.arcs, self.outcomes, self.elapsed):
                del column[: len(column) - stays]
            self._digestible = 0, 0
            self.digests = {step: digest for step, digest in self.digests.items() if step >= self.first}
            self.frames = [frame for frame in self.frames if frame.moves > self.origin.moves]
            self.cuts = []
            self._forgetting = None
        if self._cutting is not None:
            number, cuts, events = self._cutting
            place = number - self.first
            del self.elapsed[place:], self.arcs[place:], self.outcomes[place:]
            self._digestible = 0, 0
            self.digests = {step: digest for step, digest in self.digests.items() if step < number}
            before = self.forgotten.events + sum(event.number < number for event in events)
            self.frames = [frame for frame in self.frames if frame.number <= number and frame.events <= before]
            self.events, self.rewound, self.ended_as = events, None, None
            if len(self.cuts) == cuts:
                self.cuts.append(number)
            self._cutting = None
        whole = len(self.elapsed)
        del self.arcs[whole:], self.outcomes[whole:]

    def copy(self, number: int, events: Sequence[Event]) -> "Timeline[Context]":
        """A timeline of its own with the steps before `number` and these events."""
        arcs, outcomes, elapsed = self.columns(self.first, number)
        behind = self.forgotten.events + len(events)
        frames = [frame for frame in self.frames if frame.number <= number and frame.events <= behind]
        return Timeline(
            self.machine, self.program, self.origin, list(arcs), list(outcomes), list(elapsed), list(events),
            {step: digest for step, digest in self.digests.items() if step < number}, frames, spacing=self.spacing,
            widest=self.widest, forgotten=self.forgotten,
        )  # fmt: skip

    def digestible(self) -> int:
        """How many steps so far ran phases that give a digest."""
        upto, found = self._digestible
        if upto > len(self.elapsed):
            upto = found = 0
        found += self._digestible_among(self.arcs[upto : len(self.elapsed)])
        self._digestible = len(self.elapsed), found
        return self.forgotten.digestible + found

    def _digestible_among(self, arcs: Sequence[Arc]) -> int:
        giving = [gives_digest(phase) for phase in self.program.phases]
        return sum(giving[arc.source] for arc in arcs) if any(giving) else 0


def gives_digest(phase: Phase[Any, Any]) -> bool:
    """Whether a phase has a digest of its own."""
    return type(phase).digest is not Phase.digest
