"""A run: one execution of a machine over one context, that rests only between steps."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from time import perf_counter_ns, thread_time_ns
from typing import Any, ClassVar, Generic, Self, TypeVar
from uuid import uuid4

from statemachine.definition.guard import Guard
from statemachine.definition.machine import Interpreter, Machine
from statemachine.definition.phase import End, Phase, Status
from statemachine.definition.table import Signal, name_of
from statemachine.errors import IllegalMove, JournalError, PhaseError
from statemachine.execution import host_state, loop
from statemachine.execution.driver import Driver
from statemachine.execution.recorder import Recorder
from statemachine.execution.resources import Resources
from statemachine.execution.timeline import Event, Frame, Step, Timeline, gives_digest
from statemachine.execution.travel import state_at
from statemachine.log import emit

Context = TypeVar("Context")
Result = TypeVar("Result")

BEHIND_NS = 50_000_000  # a record is never further behind than this, at the next boundary
FRAMES_PART = 25  # a copy of the host fields is made when this many times its cost has passed since the last one
AT_REST = (Status.READY, Status.PAUSED)
ANY = tuple(status for status in Status if status is not Status.RUNNING)

Breakpoint = Phase[Any, Any] | Guard[Any] | Callable[["Run[Any]"], bool]


@dataclass(slots=True, eq=False)
class _Sent(Generic[Context]):
    """A signal on its way, and the event that it became."""

    signal: Signal[Context]
    event: Event | None = None


class Run(Generic[Context]):
    """One execution of a machine.

    A run is driven by the thread that calls `start`, `resume`, `until`, `step` or iterates over it. Any other thread
    may call `pause` and `signal`: they take effect at the next boundary between two steps. Every move is all or
    nothing: what an interrupt cuts short is undone, at the latest when the run is next moved.

    Parameters
    ----------
    machine, context
        What runs, and what it works on. Nothing is ever added to the context.
    run_id
        How logs and errors call this run; made up unless given.
    interpreter
        "compiled", or "transitions" to let that library evaluate every guard and choose every transition.
    log_steps
        Also log each step, at debug level.
    resources
        What stands behind the context besides its host fields.
    keep
        Keep the resources when the run ends, until `close()`, so that one can still go back.
    request
        What was asked for: goes into journals and snapshots, so that the run can be made again.
    journal
        Where to record the run, a JournalWriter for example.
    digest_every
        Record a digest of the buffers after every n-th step of a phase that has one; 0 is off.
    forked_from
        The id of the run that this one shares its past with.
    """

    saver: ClassVar[Callable[..., None]]  # writes snapshots; joined to this class by the package, from `record`

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
        request: Any = None,
        journal: Recorder | None = None,
        digest_every: int = 0,
        forked_from: str | None = None,
    ) -> None:
        self.machine = machine
        self.context = context
        self.id = run_id or uuid4().hex[:12]
        self.request = request
        self.forked_from = forked_from
        self.resumed: dict[str, Any] | None = None  # from what snapshot, and how, if it was
        self.resources = resources or Resources()
        self.journal = journal
        self.digest_every = digest_every
        if journal:
            journal.attach(self.id)
        program = machine.program(interpreter)
        self.timeline: Timeline[Context] = Timeline(machine, program)
        self._program = program
        self._interpreter: Interpreter = interpreter
        self._log_steps = log_steps
        self._keep = keep
        self._released = False  # the resources are not to be touched any more
        self._given_back = False  # and were given back
        self._status = Status.READY
        self._cursor = loop.Cursor(program.index_of(machine.start.name))
        self._driver = Driver()
        self._pending: deque[_Sent[Context]] = deque()
        self._pause_requested = False
        self._torn = False  # context and cursor may not agree with the timeline, which decides
        self._told_at = 0  # ns of the clock: when the recorder was last told
        self._frame_at = 0  # ns of the clock: not before this is the next frame kept

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        return self._status

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
    def recorded_steps(self) -> int:
        """How many steps are recorded: more than `step_count` while the run rests in its own past."""
        return self.timeline.count

    @property
    def guards(self) -> dict[str, bool]:
        """The present values of the guards of the phase the run rests at."""
        return {atom.name: atom(self.context) for atom in self._program.atoms[self._cursor.index]}

    @property
    def events(self) -> list[Event]:
        """The signals and edits that have taken effect, each with the number of the step before which it did."""
        return self.timeline.events_here

    @property
    def pending(self) -> tuple[str, ...]:
        """The names of signals that were sent and not taken yet."""
        return tuple(sent.signal.name for sent in self._pending)

    def steps(self, first: int = 0, *, future: bool = False) -> Iterator[Step]:
        """The steps taken so far, from number `first` on; with `future`, also those that `goto` went back from."""
        for number in range(max(first, self.timeline.first), self.recorded_steps if future else self.step_count):
            yield self.timeline.step(number)

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.machine.name}: {self._status} at {self.phase.name}, {self.step_count} steps>"

    # --- how it is moved ----------------------------------------------------------------------------------------

    def start(self) -> Status:
        """Begin a ready run and drive it until it ends or pauses."""
        self._move("start", (Status.READY,), self._drive)
        return self._status

    def resume(self) -> Status:
        """Drive a paused run on until it ends or pauses."""
        self._move("resume", (Status.PAUSED,), self._drive)
        return self._status

    def until(self, breakpoint: Breakpoint) -> Status:
        """Drive on until it rests at a phase, a guard holds or a function of the run gives True (or it ends).

        At least one step is taken, so that the same breakpoint can be used again and again.
        """
        condition, failure = _as_condition(breakpoint), []

        def stop() -> bool:
            try:
                return condition(self)
            except Exception as error:  # the breakpoint is at fault, not the phase: the run rests here, unharmed
                failure.append(error)
                return True

        self._move("until", AT_REST, lambda: self._drive(stop=stop))
        if failure:
            raise failure[0]
        return self._status

    def step(self) -> Step | None:
        """Take one step. None when a signal that was pending ended the run instead, or a pause was asked for."""
        return self._move("step", AT_REST, lambda: self._step(pausable=False))

    def __iter__(self) -> Iterator[Step]:
        """Step by step, until the run ends or somebody pauses it."""
        if self._status is Status.PAUSED:
            self._pause_requested = False
        while not self._status.ended and not self._pause_requested:
            if step := self._move("iterate", AT_REST, lambda: self._step(pausable=True)):
                yield step
        if self._status is Status.PAUSED:
            self._move("iterate", AT_REST, self._tell)

    def take(self, outcome: Any, *, elapsed_ns: int = 0, digest: Any = None) -> Step:
        """Take one step with a given outcome instead of running the phase: only `apply` and the guards are called."""

        def given() -> None:
            cursor, timeline = self._cursor, self.timeline
            row = self._program.rows[cursor.index]
            if outcome is not None:
                row.apply(self.context, outcome)
            arc = row.arcs[0] if row.select is None else row.arcs[row.select(self.context)]
            if digest is not None:
                timeline.digests[timeline.count] = digest
            timeline.arcs.append(arc)
            timeline.outcomes.append(outcome)
            cursor.index = arc.target
            timeline.elapsed.append(elapsed_ns)
            self._tend(perf_counter_ns())

        def take() -> Step:
            before = self.step_count
            self._drive(loop=given, rests=False)
            return self.timeline.step(before)

        return self._move("take a step in", AT_REST, take)

    def pause(self) -> None:
        """Ask the run to rest at the next boundary; of use from any thread and from signal handlers."""
        if self._status.ended:
            raise IllegalMove(f"cannot pause run {self.id}: it is {self._status}; only a run that has not ended pauses")
        self._pause_requested = True
        self._cursor.attention = True

    def wait(self, timeout: float | None = None) -> Status:
        """Block until nobody drives the run, at most `timeout` seconds, and give its status."""
        self._driver.wait(timeout)
        return self._status

    def rest(self) -> None:
        """Let the run rest, begun, where it stands, at its start perhaps; the recorder is told."""

        def rest() -> None:
            if self._status is Status.READY:
                self._begin()
                self._log("info", "run.started")
                self._status = Status.PAUSED
            self._rest()

        self._move("rest", AT_REST, rest)

    def signal(self, name: str, *, wait: bool = False) -> None:
        """Send a signal: taken at once by a resting run, at the next boundary by a running one.

        Parameters
        ----------
        wait
            Where the phase that the run rests at does not take it, let it wait for one that does.

        Raises
        ------
        ValueError
            When the machine has no such signal.
        IllegalMove
            When the run has ended, or rests at a phase that does not take it.
        """
        signal = self.machine.signal(name)
        self._driver.check(f"signal run {self.id}")
        if self._status.ended:
            raise IllegalMove(f"cannot send {name!r} to run {self.id}: it is {self._status}")
        if not wait and not self._driver.held and not self._takes(signal):
            sources = ", ".join(repr(name_of(source)) for source in signal.sources)
            raise IllegalMove(f"run {self.id} rests at {self.phase.name!r}, but {name!r} is taken only at {sources}")
        self._pending.append(_Sent(signal))
        self._cursor.attention = True
        self._settle()

    def edit(self, name: str, /, **arguments: Any) -> Any:
        """Make a change that the machine knows to a resting run; it is recorded. Gives what the arguments came to.

        Raises
        ------
        ValueError
            When there is no such edit or its arguments make no sense; nothing is changed then.
        IllegalMove
            When the run is running or has ended.
        """
        edit = self.machine.edit(name)

        def change() -> Any:
            outcome = edit.run(self.context, **arguments)
            if self.journal:
                self.journal.accept(outcome)
            self._enter_edit(name, outcome)
            return outcome

        return self._move(f"edit ({name})", AT_REST, change)

    def edit_as_recorded(self, name: str, outcome: Any, *, live: bool) -> None:
        """Make an edit by what its arguments came to; unless `live`, the resources need not follow, as in `take`."""
        self._move(f"edit ({name})", AT_REST, lambda: self._enter_edit(name, outcome, live=live))

    # --- time travel --------------------------------------------------------------------------------------------

    def goto(self, number: int) -> None:
        """Rest where the run rested after `number` steps, before any signal or edit there; forward as well as back.

        What lies ahead stays recorded until the run is moved on from here by a step, an edit or a signal. Host fields
        are folded from the record; resources are told to agree (`Resources.sync`).

        Raises
        ------
        IllegalMove
            When there is no such place, or the run has ended and its resources were not kept.
        """

        def travel() -> None:
            self._check_place(number)
            timeline = self.timeline
            if timeline.rewound is None:
                self._tell()  # what a loop over the run left to be told is soon behind
            self._begin()
            present = number == timeline.count
            events = timeline.events if present else timeline.events_before(number)
            there = state_at(timeline, self.context, number, events)
            before = timeline.rewound
            with _Undone(self, lambda: setattr(timeline, "rewound", before)):
                timeline.rewound = None if present else number
                self._agree(*there)

        self._move("go to a step of", ANY, travel)

    def back(self, steps: int = 1) -> None:
        """Go back so many steps."""
        self.goto(self.step_count - steps)

    def fork(self, at: int | None = None, *, journal: Recorder | None = None) -> "Run[Context]":
        """A second run that has the same past up to step `at` (unless given: up to here) and a future of its own."""

        def branch() -> Run[Context]:
            timeline, number = self.timeline, self.step_count if at is None else at
            self._check_place(number)
            self._begin()
            events = timeline.events_here if number == self.step_count else timeline.events_before(number)
            context = self.resources.fork(self.context)
            try:
                fork = Run(
                    self.machine, context, interpreter=self._interpreter, log_steps=self._log_steps, keep=self._keep,
                    resources=self.resources, request=self.request, journal=journal,
                    digest_every=self.digest_every, forked_from=self.id,
                )  # fmt: skip
                fork._adopt(timeline.copy(number, events))
            except BaseException:
                self.resources.release(context)
                raise
            return fork

        return self._move("fork", ANY, branch)

    def _adopt(self, timeline: Timeline[Context], *, live: bool = True) -> None:
        """Begin with a past: rest, paused, at its end."""
        self.timeline = timeline
        self._status = Status.PAUSED
        self._agree(*state_at(timeline, self.context, timeline.count, timeline.events), live=live)
        self._rest()

    def begin_at(self, number: int, phase: str, fields: dict[Any, Any]) -> None:
        """Let a ready run begin, paused, after so many steps, at this phase, with these host fields: without a past.

        The resources are not told; whoever calls this sees to them.
        """

        def begin() -> None:
            self.timeline.origin = Frame(number, self._program.index_of(phase), fields)
            self._adopt(self.timeline, live=False)

        self._move("begin", (Status.READY,), begin)

    def snapshot(self, path: str | PathLike[str], *, history: bool = True, share: bool = False, **options: Any) -> None:
        """Save a resting run to a file from which any process can go on, whole or not at all.

        Parameters
        ----------
        history
            Keep the run's past. Without it the file's size does not grow with the run, and one cannot go back beyond
            the place where it was saved.
        share
            Put large arrays into the folder `snapshot-pages` beside the file, each under the checksum of what is in it,
            so that snapshots that have them in common share them.
        options
            How the resources are to be saved, for `Resources.save`; recorded in the file.

        Raises
        ------
        SnapshotError
            When it cannot be written; a file that stood there before still does.
        """

        def save() -> None:
            self._begin()
            self.saver(path, history=history, share=share, options=options)

        self._move("save", AT_REST, save)

    # --- moving -------------------------------------------------------------------------------------------------

    def _move(self, verb: str, allowed: tuple[Status, ...], work: Callable[[], Result]) -> Result:
        """Do what moves the run, or refuse: it is being driven, or has none of these statuses, or was closed."""

        def moved() -> Result:
            self._mend()
            if self._status not in allowed:
                expected = " or ".join(sorted(allowed))
                raise IllegalMove(f"cannot {verb} run {self.id}: it is {self._status}, not {expected}")
            if self._released and not self._status.ended and verb != "close":
                raise IllegalMove(f"cannot {verb} run {self.id}: it was closed")
            return work()

        try:
            return self._driver.hold(f"{verb} run {self.id}", moved)
        finally:
            self._settle()

    def _mend(self) -> None:
        """Finish what an interrupt, and a second one after it, cut short."""
        if not self._torn:
            if self.phase.final and not self._status.ended:
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

    def _drive(
        self, *, stop: Callable[[], bool] | None = None, loop: Callable[[], None] | None = None, rests: bool = True
    ) -> None:
        """Take steps until the run is to rest or has ended; whatever is raised on the way, the run fails of."""
        if self._status is Status.PAUSED and rests:
            self._pause_requested = False
        if self._status is Status.READY:
            self._begin()
            self._log("info", "run.started")
        try:
            self._torn = True
            self._begin(on=True)
            self._status = Status.RUNNING
            if self._pending or self._pause_requested:
                self._cursor.attention = True
            (loop or self._loop)(*(() if loop else (self._watched(stop),)))
            if not self.phase.final:
                self._status = Status.PAUSED
            self._torn = False
            self._rest(rests=rests)
        except BaseException as error:
            self._fail(error)
            raise
        if stop is None and loop is None and self._status is Status.PAUSED:
            self._log("info", "run.paused", phase=self.phase.name)

    def _loop(self, stop: Callable[[], bool] | None) -> None:
        if self.journal:
            self._cursor.due = 0
        loop.drive(
            self._cursor, self._program.rows, self.context, self.timeline, heed=self._heed, tend=self._tend, stop=stop,
            accept=self.journal.accept if self.journal else None,
        )  # fmt: skip

    def _step(self, *, pausable: bool) -> Step | None:
        before = self.step_count
        self._drive(stop=_always, rests=not pausable)
        return self.timeline.step(before) if self.step_count > before else None

    def _tend(self, now: int) -> None:
        """Between two steps: tell the recorder in time, and keep a frame now and then."""
        cursor, timeline = self._cursor, self.timeline
        if self.journal and (self.journal.every_step or now - self._told_at >= BEHIND_NS):
            self._tell(rests=False)
        if timeline.wants_frame and now >= self._frame_at:
            self._keep_frame()
        cursor.due = 0 if self.journal and self.journal.every_step else now + 1_000_000

    def _keep_frame(self) -> None:
        began = thread_time_ns()
        try:
            fields = host_state.save(self.context)
        except TypeError:  # a field that cannot be copied any more; then all folds begin at the origin
            self._frame_at = 2**63
            return
        cost = thread_time_ns() - began
        self.timeline.keep(Frame(self.timeline.count, self._cursor.index, fields, cost))
        self._frame_at = perf_counter_ns() + FRAMES_PART * cost

    def _watched(self, stop: Callable[[], bool] | None) -> Callable[[], bool] | None:
        """`stop`, after each step has been logged and digested, where that was asked for."""
        if not self._log_steps and not self.digest_every:
            return stop
        every, timeline = self.digest_every, self.timeline
        coming = timeline.digestible() if every else 0

        def watch() -> bool:
            nonlocal coming
            number = timeline.count - 1
            if every and gives_digest(phase := self._program.phases[timeline.arcs[-1].source]):
                if coming % every == 0:
                    timeline.digests[number] = phase.digest(self.context)
                coming += 1
            if self._log_steps:
                step = timeline.step(number)
                fields = {"phase": step.phase, "target": step.target, "guards": dict(step.guards)}
                self._log("debug", "run.step", **fields, elapsed_ns=step.elapsed_ns)
            return stop is not None and stop()

        return watch

    def _enter_edit(self, name: str, outcome: Any, *, live: bool = True) -> None:
        self._begin()
        scratch = host_state.scratch(self.context, host_state.save(self.context))
        self.machine.edit(name).apply(scratch, outcome)
        if self._status is Status.READY:
            self._log("info", "run.started")
        self._torn = True
        self.timeline.enter(Event(self.step_count, "edit", name, outcome))
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
        if self._pending:
            self._cursor.attention = True  # one that this phase does not take waits for a phase that does
        if self._pause_requested and not self.phase.final:
            self._pause_requested = False
            return True
        return False

    def _take_signals(self) -> None:
        while self._pending and (self._entered(sent := self._pending[0]) or self._takes(sent.signal)):
            if not self._entered(sent):
                self._begin()
                sent.event = Event(self.step_count, "signal", sent.signal.name)
                self.timeline.enter(sent.event)
                to = name_of(sent.signal.to)
                self._log("info", "run.signal", signal=sent.signal.name, phase=self.phase.name, to=to)
                self._cursor.index = self._program.index_of(to)
            self._pending.popleft()

    def _entered(self, sent: _Sent[Context]) -> bool:
        """Whether a signal became an event before an interrupt kept it from being taken off the queue."""
        events = self.timeline.events
        return bool(sent.event and events and events[-1] is sent.event)

    def _settle(self) -> None:
        """Take the signals that are pending while nobody drives the run."""

        def taken() -> None:
            self._mend()
            self._torn = True
            self._take_signals()
            self._torn = False
            self._rest()

        while self._pending and not self._driver.held and self._takes(self._pending[0].signal):
            try:
                self._driver.hold(f"signal run {self.id}", taken)
            except IllegalMove:  # somebody else drives it now, and takes them
                return

    def _takes(self, signal: Signal[Context]) -> bool:
        if self.phase.final or self._status.ended or self._released:
            return False
        return not signal.sources or self.phase.name in [name_of(source) for source in signal.sources]

    def _check_place(self, number: int) -> None:
        first, count = self.timeline.first, self.recorded_steps
        if not first <= number <= count:
            past = f"; what was before step {first} was not kept" if first else ""
            raise IllegalMove(f"run {self.id} has {count} recorded steps; there is no place {number}{past}")
        if self._released:
            raise IllegalMove(f"run {self.id} has ended and given its resources back; start it with keep=True")

    # --- how it ends --------------------------------------------------------------------------------------------

    def _rest(self, *, rests: bool = True) -> None:
        """The run has come to rest: it has ended, if it stands at an end; the recorder is told."""
        if self.phase.final and not self._status.ended:
            assert isinstance(self.phase, End)
            self._status = self.timeline.ended_as = self.phase.status
            self._log("info", "run.finished", status=str(self._status))
        self._tell(rests=rests)
        if self._status.ended:
            self._pending.clear()
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
            self._agree(*state_at(timeline, self.context, self.step_count, timeline.events_here), live=False)
        except Exception as broken:
            self._torn = False
            error.add_note(f"its past cannot be folded again: {broken!r}")
        self._log("error", "run.failed", phase=self.phase.name, error=repr(error))
        try:
            if self.journal and not isinstance(error, JournalError):
                self.journal.write(self, error)
        except JournalError as lost:  # what went wrong in the phase matters more
            self._log("error", "run.journal_lost", error=str(lost))
        finally:
            if not self._keep:
                self._release()
        if isinstance(error, Exception) and not isinstance(error, JournalError):
            raise PhaseError(run_id=self.id, phase=self.phase.name, step=self.step_count, cause=error) from error

    def close(self) -> None:
        """Give the resources back; a run that has not ended can go no further.

        Raises
        ------
        IllegalMove
            When another thread drives the run: pause it and wait first.
        """
        if not self._given_back:
            self._move("close", ANY, self._release)

    def _release(self) -> None:
        if self._given_back:
            return
        self._released = True
        try:
            self.resources.release(self.context)
        except Exception as error:
            self._log("error", "run.not_released", error=repr(error))
            warnings.warn(f"run {self.id} could not give its resources back: {error!r}", RuntimeWarning, stacklevel=2)
        finally:
            if self.journal:
                try:
                    if not self._status.ended:
                        self.journal.write(self)
                finally:
                    self.journal.close()
        self._given_back = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _tell(self, *, rests: bool = True) -> None:
        if self.journal:
            self.journal.write(self, rests=rests)
            self._told_at = perf_counter_ns()

    def _log(self, level: str, event: str, **fields: Any) -> None:
        emit(level, event, run_id=self.id, machine=self.machine.name, step=self.step_count, **fields)


class _Undone:
    """Undoes a move whose body is cut short, and makes the run agree with its timeline again."""

    __slots__ = ("_run", "_undo")

    def __init__(self, run: Run[Any], undo: Callable[[], None]) -> None:
        self._run, self._undo = run, undo

    def __enter__(self) -> None:
        self._run._torn = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self._run._torn = True
            self._undo()
            self._run._mend()


def _always() -> bool:
    return True


def _as_condition(breakpoint: Breakpoint) -> Callable[[Run[Any]], bool]:
    if isinstance(breakpoint, Phase):
        return lambda run: run.phase is breakpoint
    if isinstance(breakpoint, Guard):
        return lambda run: breakpoint(run.context)
    return breakpoint
