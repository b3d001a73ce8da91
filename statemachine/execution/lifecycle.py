"""The life of a run: what every move of it is made of, so that each is made whole or not at all."""

import warnings
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, ClassVar, Generic, TypeVar
from uuid import uuid4

from statemachine.definition.machine import Interpreter, Machine
from statemachine.definition.phase import End, Phase, Status, Wait
from statemachine.definition.table import Signal
from statemachine.errors import IllegalMove, JournalError, PhaseError, described
from statemachine.execution import company, host_state, loop
from statemachine.execution.driver import Driver
from statemachine.execution.inbox import Inbox
from statemachine.execution.recorder import Recorder
from statemachine.execution.resources import Resources
from statemachine.execution.timeline import Event, Frame, Timeline
from statemachine.execution.travel import FrameKeeper, state_at
from statemachine.log import emit, listening

Context = TypeVar("Context")
Result = TypeVar("Result")

PAUSED, WAITING = Status.PAUSED, Status.WAITING  # looked up once
FREE = (Status.READY, PAUSED, Status.FAILED)  # to take a step
AT_REST = (*FREE, WAITING)
RECEPTIVE = (Status.READY, PAUSED, WAITING)  # to signals
LOOK_UP_NS = 1_000_000  # how often the loop looks up from its work
ANY = tuple(status for status in Status if status is not Status.RUNNING)


class Lifecycle(Generic[Context]):
    """The state of a run, and what all of its moves share; the classes built on it have the moves themselves.

    The timeline decides where a run is. Context, cursor and resources follow it; while a move has them in hand they
    are `torn`, and whoever moves the run next after an interrupt makes them agree with the timeline again.
    """

    # Of `record`, and joined to this class by the package: writes snapshots; makes an answer or a payload what its
    # phase or signal declares.
    saver: ClassVar[Callable[..., None]]
    typed: ClassVar[Callable[[Any, Phase[Any, Any] | Signal[Any, Any]], Any]]

    def __init__(
        self,
        machine: Machine[Context],
        context: Context,
        *,
        run_id: str | None = None,
        interpreter: Interpreter = "compiled",
        log_steps: bool = False,
        resources: Resources[Context] | None = None,
        keep: bool = False,
        keep_steps: int | None = None,
        request: Any = None,
        journal: Recorder | None = None,
        digest_every: int = 0,
        forked_from: str | None = None,
    ) -> None:
        if keep_steps is not None and keep_steps < 1:
            raise ValueError(f"keep_steps is how many steps are kept, at least 1, or None for all, not {keep_steps}")
        self.machine = machine
        self.context = context
        self.id = run_id or uuid4().hex[:12]
        self.request = request
        self.forked_from = forked_from
        self.resumed: dict[str, Any] | None = None  # from what snapshot, and how, if it was
        self.began: dict[str, Any] | None = None  # its first host fields in plain values, if its past was left behind
        self.resources = resources or Resources()
        self.journal = journal
        self.digest_every = digest_every
        if journal:
            journal.attach(self.id)
        program = machine.program(interpreter)
        self.timeline: Timeline[Context] = Timeline(machine, program)
        if keep_steps:
            self.timeline.spacing, self.timeline.widest = min(self.timeline.spacing, keep_steps), keep_steps
        self._program = program
        self._interpreter: Interpreter = interpreter
        self._log_steps = log_steps
        self._keep = keep
        self._keep_steps = keep_steps
        self._released = False  # the resources are not to be touched any more
        self._given_back = False  # and were given back
        self._status = Status.READY
        self._cursor = loop.Cursor(program.index_of(machine.start.name))
        self._inbox: Inbox[Context] = Inbox(self._cursor)
        self._driver = Driver(f"run {self.id}")
        self._frames = FrameKeeper()
        self._torn = False  # context and cursor may not agree with the timeline, which decides
        self._told_at = 0  # ns of the clock: when the recorder was last told

    @property
    def status(self) -> Status:
        """Where it stands in its life; it waits wherever it would else be paused at a `Wait`."""
        status = self._status
        waits = status is PAUSED and isinstance(self._program.phases[self._cursor.index], Wait)
        return WAITING if waits else status

    @property
    def phase(self) -> Phase[Context, Any]:
        """The phase that the run rests at, which has not run yet (while running: the one at work)."""
        return self._program.phases[self._cursor.index]

    @property
    def phase_name(self) -> str:
        """The name of that phase."""
        return self.phase.name

    @property
    def step_count(self) -> int:
        """How many steps lie behind the place where the run rests."""
        return self.timeline.here

    @property
    def events(self) -> list[Event]:
        """The signals and edits that have taken effect, and the signals that were refused.

        Each with the number of the step before which that was.
        """
        return self.timeline.events_here

    @property
    def pending(self) -> tuple[str, ...]:
        """The names of signals that were sent and not taken yet."""
        return tuple(sent.name for sent in self._inbox.sent)

    @property
    def sent(self) -> tuple[tuple[str, Any], ...]:
        """Those signals, each with what it carries."""
        return tuple((sent.name, sent.payload) for sent in self._inbox.sent)

    # --- a move -------------------------------------------------------------------------------------------------------

    def _move(self, verb: str, allowed: tuple[Status, ...], work: Callable[..., Result], *arguments: Any) -> Result:
        """Do what moves the run, or refuse: it is being driven, or has none of these statuses, or was closed."""
        try:
            result: Result = self._driver.hold(verb, self._moved, verb, allowed, work, arguments)
            return result
        finally:
            if self._inbox.waiting:
                self._settle()

    def _moved(
        self, verb: str, allowed: tuple[Status, ...], work: Callable[..., Result], arguments: tuple[Any, ...]
    ) -> Result:
        if self._torn or self._program.phases[self._cursor.index].final:
            self._mend()
        if (status := self.status) not in allowed:
            expected = f"{status}, not {' or '.join(sorted(allowed))}"
            if status is WAITING:
                expected = f"waiting at {self.phase.name!r}: give it what it waits for, with answer(), or a signal"
            raise IllegalMove(f"cannot {verb} run {self.id}: it is {expected}")
        if self._released and not status.over and verb != "close":
            raise IllegalMove(f"cannot {verb} run {self.id}: it was closed")
        return work(*arguments)

    def _mend(self) -> None:
        """Finish what an interrupt, and a second one after it, cut short."""
        if not self._torn:
            if self.phase.final and (self._inbox.waiting or not self._status.ended):
                self._rest()
            return
        self._begin()
        self.timeline.mend()
        if self._status is Status.RUNNING:
            self._status = self.timeline.ended_as = Status.FAILED
        elif self._status is not Status.READY:
            self._status = (self.timeline.rewound is None and self.timeline.ended_as) or Status.PAUSED
        timeline = self.timeline
        self._agree(*state_at(timeline, self.context, self.step_count, timeline.events_here))
        self._rest()

    def _agree(self, scratch: Context, index: int, *, live: bool = True) -> None:
        """Take over what was worked out aside, so that context, cursor and resources agree with the timeline."""
        self._torn = True
        host_state.adopt(self.context, scratch)
        self._cursor.index = index
        if self._status is not Status.READY:
            ended = self.timeline.ended_as if self.timeline.rewound is None else None
            self._status = ended or Status.PAUSED
        if live and not self._released:
            self.resources.sync(self.context)
        self._torn = False

    def _begin(self, *, on: bool = False) -> None:
        """Before the run is first touched, keep its origin; before it goes `on`, forget what lay ahead."""
        if self.timeline.origin is None:
            self.timeline.origin = Frame(0, self._cursor.index, host_state.save(self.context))
        if on:
            self.timeline.cut()
            self.timeline.ended_as = None

    def _look_up(self) -> None:
        """After a move from outside, remember as seldom as the loop does."""
        now = perf_counter_ns()
        if self._keep_steps or now >= self._cursor.due:
            self._cursor.due = now + LOOK_UP_NS
            self._remember(now)

    def _remember(self, now: int) -> None:
        """Between two moves: keep a frame now and then, and forget moves once twice as many are there as are kept."""
        timeline, kept = self.timeline, self._keep_steps
        self._frames.keep(timeline, self.context, self._cursor.index, now, among=company.size())
        if kept and timeline.origin and timeline.moves - timeline.origin.moves >= 2 * kept:
            self._tell(rests=False)
            timeline.forget(kept)

    def _check_place(self, number: int) -> None:
        first, count = self.timeline.first, self.timeline.count
        amid = self.timeline.origin is not None and self.timeline.origin.amid  # what was there before is not kept
        if not first + amid <= number <= count and number != count:
            past = f"; what was before step {first + amid} was not kept" if first + amid else ""
            raise IllegalMove(f"run {self.id} has {count} recorded steps; there is no place {number}{past}")
        if self._released:
            raise IllegalMove(f"run {self.id} has ended and given its resources back; start it with keep=True")

    def _settle(self) -> None:
        """Take the signals that are pending while nobody drives the run."""
        raise NotImplementedError

    # --- how it ends --------------------------------------------------------------------------------------------------

    def _rest(self, *, rests: bool = True) -> None:
        """The run has come to rest: it has ended, if it stands at an end; the recorder is told."""
        phase = self._program.phases[self._cursor.index]
        if phase.final and not self._status.ended:
            assert isinstance(phase, End)
            self._status = self.timeline.ended_as = phase.status
            self._log("info", "run.finished", status=str(self._status))
        if not self._status.over:
            if self.journal:
                self._tell(rests=rests)
            return
        self._refuse_rest()
        self._tell(rests=rests)
        if not self._keep:
            self._release()

    def _fail(self, error: BaseException) -> None:
        """Rest, failed, at the phase that raised, with the context as it was before it."""
        timeline = self.timeline
        at_end = self._status.ended or (self.phase.final and timeline.whole)
        if at_end and not isinstance(error, JournalError):  # an interrupt at the very end changes nothing
            self._torn = False
            self._rest()
            return
        self._torn = True
        timeline.mend()
        timeline.cut()
        self._status = timeline.ended_as = Status.FAILED
        try:
            self._agree(*state_at(timeline, self.context, self.step_count, timeline.events_here))
        except Exception as broken:
            self._torn = False
            error.add_note(f"what stands behind the run does not agree with it: {described(broken)}")
        self._log("error", "run.failed", phase=self.phase.name, error=described(error))
        try:
            if self.journal and not isinstance(error, JournalError):
                self.journal.write(self, error)
        except JournalError as lost:  # what went wrong in the phase matters more
            self._log("error", "run.journal_lost", error=str(lost))
        if isinstance(error, Exception) and not isinstance(error, JournalError):
            raise PhaseError(run_id=self.id, phase=self.phase.name, step=self.step_count, cause=error) from error

    def _refuse_rest(self) -> None:
        """The run is over: what was sent and not taken is refused, and recorded, rather than lost."""
        raise NotImplementedError

    def _release(self) -> None:
        if self._given_back:
            return
        self._released = True
        try:
            self.resources.release(self.context)
        except Exception as error:
            self._log("error", "run.not_released", error=described(error))
            warnings.warn(
                f"run {self.id} could not give its resources back: {described(error)}", RuntimeWarning, stacklevel=2
            )
        finally:
            if self.journal:
                try:
                    if not self._status.ended:
                        self.journal.write(self)
                finally:
                    self.journal.close()
        self._given_back = True

    def _tell(self, *, rests: bool = True) -> None:
        if self.journal:
            self.journal.write(self, rests=rests)
            self._told_at = perf_counter_ns()

    def _log(self, level: str, event: str, **fields: Any) -> None:
        if not listening():  # as at every answer and signal
            return
        emit(level, event, run_id=self.id, machine=self.machine.name, step=self.step_count, **fields)
