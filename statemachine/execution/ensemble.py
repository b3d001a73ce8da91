"""An ensemble: runs that are driven together, and share the work of the phases at which they meet."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event, get_ident
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from statemachine.definition.phase import Failed, Phase, Status
from statemachine.definition.program import Program, Row
from statemachine.errors import IllegalMove
from statemachine.execution import company
from statemachine.execution.driver import Driver
from statemachine.execution.run import Run

Context = TypeVar("Context")
Result = TypeVar("Result")


class Ensemble:
    """Drives any number of runs in one thread; those that rest at the same phase run it in one call.

    Each remains a run of its own: it is recorded, paused, sent signals, gone back in and replayed as if it were alone,
    and its record is the one that it would have alone. What is shared is the work of phases that override
    `Phase.run_many`. A run does all else by itself, as soon as it can, until it comes to such a phase; there it waits
    for the next turn. A turn passes each phase at which runs stand once, in the order of the machine's table.

    Runs may be of different machines: what counts is that a phase is the same object. Any thread may `submit`; one at a
    time drives. An interrupt there (Ctrl-C) reaches each run as it would alone: it fails, and can be resumed.
    """

    def __init__(self) -> None:
        self._coming: deque[tuple[Callable[[], Any], Future[Any], Variables]] = deque()
        self._arrived = Event()
        self._closed = False
        self._members: set[_Member] = set()
        self._meetings: list[_Meeting] = []  # in the order of the tables
        self._programs: dict[int, tuple[Program[Any], tuple[Row[Any], ...]]] = {}  # by id, kept so that it stays theirs
        self._driver = Driver("an ensemble")
        self._thread = 0  # in which the members are

    def submit(self, run: Run[Context], work: Callable[[], Result] | None = None) -> "Future[Result | Status]":
        """Have a run driven in company from the next turn on; from any thread.

        Parameters
        ----------
        run
            A run that is ready, paused or failed.
        work
            What drives it, with any of its moves: `lambda: run.until(here)`, or a loop over its steps. Unless given, it
            is started or resumed, and driven until it ends, waits or is paused. It is called by the thread that drives
            the ensemble, and holds up everybody where it waits for something else than a phase.

        Returns
        -------
        Future
            What came of `work`, or of the run: its status. What it raised is raised by `result()`: a PhaseError if a
            phase failed for this run. Cancelling it has an effect before the next turn only: later, pause the run.

        Raises
        ------
        IllegalMove
            When the ensemble was closed.
        """
        if self._closed:
            raise IllegalMove("the ensemble was closed: make another")
        future: Future[Any] = Future()
        self._coming.append((work or partial(_go_on, run), future, copy_context()))
        self._arrived.set()
        return future

    def __len__(self) -> int:
        """How many runs are in it, or wait to come in."""
        return len(self._members) + len(self._coming)

    def drive(self) -> None:
        """Take turns until nobody is left, those that come meanwhile included.

        Raises
        ------
        IllegalMove
            When another thread drives, or did and left runs behind.
        """
        self._driver.hold("drive", self._take_turns, lambda: len(self) > 0)

    def serve(self) -> None:
        """Take turns, and wait while nobody is there, until the ensemble has been closed and nobody is left."""
        self._driver.hold("drive", self._take_turns, self._wait_for_somebody)

    def close(self) -> None:
        """Let nobody in any more; `serve` returns when those that are there have ended or were paused."""
        self._closed = True
        self._arrived.set()

    def turn(self) -> bool:
        """Take one turn, between which runs are held at the phases where they stand. Whether anybody is left."""
        turns = iter((True, False))
        self._driver.hold("drive", self._take_turns, lambda: next(turns))
        return len(self) > 0

    def rows(self, program: Program[Context]) -> Sequence[Row[Context]]:
        """The rows of a program whose shared phases ask this ensemble to do their work."""
        if id(program) not in self._programs:
            self._programs[id(program)] = (
                program,
                tuple(
                    replace(row, run=self._asking(self._meeting(place, phase))) if shares_work(phase) else row
                    for place, (phase, row) in enumerate(zip(program.phases, program.rows, strict=True))
                ),
            )
        return self._programs[id(program)][1]

    def _meeting(self, place: int, phase: Phase[Any, Any]) -> "_Meeting":
        for meeting in self._meetings:
            if meeting.phase is phase:
                return meeting
        meeting = _Meeting(phase, place)
        self._meetings = sorted([*self._meetings, meeting], key=lambda meeting: meeting.place)
        return meeting

    # --- in the thread that drives ------------------------------------------------------------------------------------

    def _take_turns(self, go_on: Callable[[], bool]) -> None:
        if self._members and self._thread != get_ident():
            raise IllegalMove(f"the {len(self._members)} runs of this ensemble are driven by another thread")
        self._thread = get_ident()
        try:
            while go_on():
                while self._coming:
                    self._let_in(*self._coming[0])
                    self._coming.popleft()  # only now, so that an interrupt loses nobody
                for meeting in self._meetings:
                    if meeting.members:
                        self._run(meeting)
        except BaseException as error:
            self._abandon(error)
            raise

    def _wait_for_somebody(self) -> bool:
        while not len(self) and not self._closed:
            self._arrived.wait()
            self._arrived.clear()
        return len(self) > 0

    def _let_in(self, work: Callable[[], Any], future: "Future[Any]", variables: Variables) -> None:
        if future.done() and not future.cancelled():  # an interrupt came between, and it was abandoned
            return
        if future.running() or future.set_running_or_notify_cancel():
            member = _Member(partial(self._belong, work, future), future, variables)
            self._members.add(member)
            self._go_on(member)

    def _run(self, meeting: "_Meeting") -> None:
        """Do the work of a phase for those who stand at it, or for as many of the first ones as it likes."""
        phase, members = meeting.phase, meeting.members[:]
        try:
            outcomes = phase.run_many([member.context for member in members])
            if not 0 < len(outcomes) <= len(members):
                raise ValueError(
                    f"run_many of phase {phase.name!r} gave {len(outcomes)} outcomes for {len(members)} runs: expected "
                    f"1 to {len(members)}, those of the first runs"
                )
        except Exception as error:
            outcomes = [Failed(error)] * len(members)
        del meeting.members[: len(outcomes)]
        for member, outcome in zip(members, outcomes, strict=False):
            self._go_on(member, outcome)

    def _go_on(self, member: "_Member", outcome: Any = None) -> None:
        """Let a member go on until it stands at a shared phase, or is done."""
        member.switch(outcome)
        if member.dead:
            self._members.discard(member)

    def _abandon(self, error: BaseException) -> None:
        """Raise what interrupted the turn in all members, so that no run is left half way; then they are gone."""
        members = [*self._members]
        for meeting in self._meetings:
            meeting.members.clear()
        for member in members:
            with suppress(BaseException):
                member.throw(type(error), error)
            if not member.future.done():  # it had not begun, or was about to tell
                member.future.set_exception(error)
        self._members.clear()

    # --- in a member --------------------------------------------------------------------------------------------------

    def _belong(self, work: Callable[[], Any], future: "Future[Any]", _: Any = None) -> None:
        company.current.set(self)
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            future.set_result(result)

    def _asking(self, meeting: "_Meeting") -> Callable[[Context], Any]:
        """What a run calls instead of a shared phase: it stands there until the work is done, for it among others."""
        belonging, standing, run = self._members, meeting.members, meeting.phase.run

        def ask(context: Context) -> Any:
            member = getcurrent()
            if member not in belonging:  # a thread that a member started
                return run(context)
            member.context = context
            standing.append(member)
            assert member.parent is not None  # who drives
            outcome = member.parent.switch()
            if type(outcome) is Failed:
                raise outcome.error
            return outcome

        return ask


@dataclass(slots=True, eq=False)
class _Meeting:
    """A shared phase, and who stands at it, first come first."""

    phase: Phase[Any, Any]
    place: int  # in its table
    members: list["_Member"] = field(default_factory=list)


class _Member(greenlet):
    """Who drives one run, and lets others work while it stands at a shared phase."""

    context: Any

    def __init__(self, work: Callable[..., Any], future: "Future[Any]", variables: Variables) -> None:
        super().__init__(work)
        self.future = future
        self.gr_context = variables


def shares_work(phase: Phase[Any, Any]) -> bool:
    """Whether a phase has a way of its own to do the work of several runs."""
    return type(phase).run_many is not Phase.run_many


def _go_on(run: Run[Any]) -> Status:
    return run.start() if run.status is Status.READY else run.resume()
