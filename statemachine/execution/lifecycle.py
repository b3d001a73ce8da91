"""The life of a run: what every move of it is made of, so that each is made whole or not at all."""

import warnings
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Generic, TypeVar
from uuid import uuid4

from statemachine.definition.machine import Interpreter, Machine
from statemachine.definition.phase import End, Phase, Status, Wait
from statemachine.definition.program import Arc, Door
from statemachine.definition.raised import Raised
from statemachine.errors import IllegalMove, JournalError, PhaseError, described
from statemachine.execution import host_state, loop
from statemachine.execution.driver import Busy, Driver
from statemachine.execution.inbox import Inbox, Sent
from statemachine.execution.observing import Stop, observed
from statemachine.execution.recorder import Recorder
from statemachine.execution.resources import Resources
from statemachine.execution.timeline import Event, Frame, Timeline
from statemachine.execution.travel import FrameKeeper, state_at
from statemachine.log import emit, listening

Context = TypeVar("Context")
Result = TypeVar("Result")

PAUSED, WAITING = Status.PAUSED, Status.WAITING  # looked up once
BEHIND_NS = 50_000_000  # a record is never further behind than this, at the next boundary
LOOK_UP_NS = 1_000_000  # how often the loop looks up from its work


class Lifecycle(Generic[Context]):
    """The state of a run, and the steps that its moves share; `Run` has the moves themselves.

    The timeline decides where a run is. Context, cursor and resources follow it; while a move has them in hand they
    are `torn`, and whoever moves the run next after an interrupt makes them agree with the timeline again.
    """

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

    # --- a move -------------------------------------------------------------------------------------------------

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

    def _check_place(self, number: int) -> None:
        first, count = self.timeline.first, self.timeline.count
        if not first <= number <= count:
            past = f"; what was before step {first} was not kept" if first else ""
            raise IllegalMove(f"run {self.id} has {count} recorded steps; there is no place {number}{past}")
        if self._released:
            raise IllegalMove(f"run {self.id} has ended and given its resources back; start it with keep=True")

    # --- driving ------------------------------------------------------------------------------------------------

    def _drive(self, *, stop: Stop | None = None, loop: Callable[[], None] | None = None, rests: bool = True) -> None:
        """Take steps until the run is to rest or has ended; whatever is raised on the way, the run fails of."""
        if self._status is Status.PAUSED and rests:
            self._inbox.pause = False
        if self._status is Status.READY:
            self._begin()
            self._log("info", "run.started")
        try:
            self._torn = True
            if self._status is Status.FAILED:
                self.resources.sync(self.context)  # whatever the phase that failed left there
            self._begin(on=True)
            self._status = Status.RUNNING
            self._inbox.remind()
            loop() if loop else self._loop(stop)
            self._remember(perf_counter_ns())
            if not self.phase.final:
                self._status = Status.PAUSED
            self._torn = False
            self._rest(rests=rests)
        except BaseException as error:
            self._fail(error)
            raise
        if stop is None and loop is None and self._status is Status.PAUSED:
            self._log("info", f"run.{self.status}", phase=self.phase.name)

    def _loop(self, stop: Stop | None) -> None:
        log = (lambda **fields: self._log("debug", "run.step", **fields)) if self._log_steps else None
        if self.journal:
            self._cursor.due = 0
        loop.drive(
            self._cursor, self._program.rows, self.context, self.timeline, heed=self._heed, tend=self._tend,
            catch=self._catch, accept=self.journal.accept if self.journal else None,
            stop=observed(self.timeline, self.context, stop, digest_every=self.digest_every, log=log),
        )  # fmt: skip

    def _catch(self, error: Exception) -> tuple[Arc, Raised] | None:
        """Take the way that the table has for what the phase at work raised; None if it has none, or two."""
        program, index = self._program, self._cursor.index
        names = [name for name, way in program.ways[index].items() if isinstance(error, way.kind)]
        if len(names) > 1:
            error.add_note(f"it is {' and '.join(names)} at once, so that no way of {self.phase.name!r} could be taken")
        if len(names) != 1:
            return None
        raised = Raised.of(names[0], error)
        arc = program.step(index, self.context, raised, raised.way)
        if not self._released:
            self.resources.sync(self.context)  # whatever the phase left there
        to = program.names[arc.target]
        self._log("warning", "run.caught", phase=self.phase.name, error=raised.exception, message=raised.message, to=to)
        return arc, raised

    def _tend(self, now: int) -> None:
        """Between two steps: tell the recorder in time, and keep what is to be remembered."""
        journal, cursor = self.journal, self._cursor
        if journal and (journal.every_step or now - self._told_at >= BEHIND_NS):
            self._tell(rests=False)
        self._remember(now)
        cursor.due = 0 if journal and journal.every_step else now + LOOK_UP_NS

    def _remember(self, now: int) -> None:
        """Between two steps: keep a frame now and then, and forget steps once twice as many are there as are kept."""
        timeline, kept = self.timeline, self._keep_steps
        self._frames.keep(timeline, self.context, self._cursor.index, now)
        if kept and timeline.count - timeline.first >= 2 * kept:
            self._tell(rests=False)
            timeline.forget(timeline.count - kept)

    def _enter_edit(self, name: str, outcome: Any, *, live: bool = True) -> None:
        self._begin()
        scratch = host_state.scratch(self.context, host_state.save(self.context))
        self.machine.edit(name).apply(scratch, outcome)
        if self._status is Status.READY:
            self._log("info", "run.started")
        self._torn = True
        self.timeline.enter(Event(self.step_count, "edit", name, outcome))
        if self._status is Status.FAILED:  # of what may be mended now
            self._status, self.timeline.ended_as = Status.PAUSED, None
        host_state.adopt(self.context, scratch)
        if live:
            self.resources.sync(self.context)
        self._torn = False
        self._tell()
        self._log("info", "run.edited", edit=name)

    # --- signals ------------------------------------------------------------------------------------------------

    def _heed(self) -> bool:
        """Take pending signals, then say whether a pause was asked for."""
        self._cursor.attention = False
        self._take_signals()
        if self._inbox.waiting:
            self._cursor.attention = True  # one that cannot be taken here waits for a phase where it can
        if self._inbox.pause and not self.phase.final:
            self._inbox.pause = False
            return True
        return False

    def _take_signals(self) -> bool:
        """Take the first signal that can be taken, as long as there is one; whether there was."""
        found = False
        while sent := next(filter(self._became_an_event, self._inbox.sent), None):
            self._inbox.take_out(sent)
            found = True
        return found

    def _became_an_event(self, sent: Sent) -> bool:
        """Take a signal if it can be taken here, or refuse it for what it carries; whether that was so."""
        if sent.entered(self.timeline):
            return True
        try:
            if (door := self._door(sent.name)) is None:
                return False
            self._begin()
            if door.apply is not None:
                self._apply_payload(door, sent.payload)
        except Exception as error:
            if self.timeline.rewound is not None:  # what lies ahead is not forgotten for that
                return False
            self._refuse(sent, described(error))
        else:
            self._pass(door, sent)
        return True

    def _door(self, name: str) -> Door[Context] | None:
        """How the phase that the run rests at takes this signal; None: it does not, now. Raises GuardError."""
        door = self._program.doors[self._cursor.index].get(name)
        return None if door is None or (door.opens is not None and not door.opens(self.context)) else door

    def _apply_payload(self, door: Door[Context], payload: Any) -> None:
        """Enter what a signal carries; what raises leaves the context as it was."""
        assert door.apply is not None
        try:
            door.apply(self.context, payload)
        except Exception:
            before, _ = state_at(self.timeline, self.context, self.step_count, self.timeline.events_here)
            host_state.adopt(self.context, before)
            raise

    def _pass(self, door: Door[Context], sent: Sent, *, live: bool = True) -> None:
        """Record a signal whose payload was entered, and go where it leads."""
        timeline, cursor = self.timeline, self._cursor
        sent.event = Event(timeline.here, "signal", sent.name, sent.payload)
        timeline.enter(sent.event)
        if listening():
            names = self._program.names
            self._log("info", "run.signal", signal=sent.name, phase=names[cursor.index], to=names[door.target])
        cursor.index = door.target
        if live and door.apply is not None:
            self.resources.sync(self.context)

    def _refuse(self, sent: Sent, reason: str) -> None:
        """Record that a signal had no effect."""
        sent.event = Event(self.step_count, "refused", sent.name, sent.payload, reason)
        self.timeline.enter(sent.event)
        self._log("warning", "run.signal_refused", signal=sent.name, phase=self.phase.name, reason=reason)

    def _settle(self) -> None:
        """Take the signals that are pending while nobody drives the run."""

        def look() -> None:
            self._mend()
            self._inbox.fresh = False
            if self._status.ended:
                return
            self._torn = True
            taken = self._take_signals()
            self._torn = False
            if taken:
                self._rest()

        moved = True  # so those that waited may be taken now
        while self._inbox.waiting and (moved or self._inbox.fresh) and not (self._status.ended or self._released):
            if self._driver.held:  # who drives it now takes them
                return
            try:
                self._driver.hold("signal", look)
            except Busy:
                return
            moved = False

    # --- how it ends --------------------------------------------------------------------------------------------

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

    def _refuse_rest(self) -> None:
        """The run is over: what was sent and not taken is refused, and recorded, rather than lost."""
        for sent in self._inbox.sent:
            if not sent.entered(self.timeline):
                self._refuse(sent, f"the run was {self._status} before it could be taken")
            self._inbox.take_out(sent)

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
