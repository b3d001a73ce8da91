"""A run: one execution of a machine over one context, that rests only between steps."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from uuid import uuid4

from statemachine.definition.guard import Guard
from statemachine.definition.machine import Interpreter, Machine
from statemachine.definition.phase import End, Phase, Status
from statemachine.definition.table import Signal, name_of
from statemachine.errors import IllegalMove, JournalError, PhaseError
from statemachine.execution import host_state
from statemachine.execution.resources import Resources
from statemachine.execution.timeline import Event, Step, Timeline
from statemachine.log import emit

if TYPE_CHECKING:
    from statemachine.record.journal import JournalWriter
    from statemachine.record.records import StepRecord

Context = TypeVar("Context")

FLUSH_NS = 50_000_000  # a journal is never further behind than this, at the next boundary
NEVER = 2**63


Breakpoint = Phase[Any, Any] | Guard[Any] | Callable[["Run[Any]"], bool]


class Run(Generic[Context]):
    """One execution of a machine.

    A run is driven by the thread that calls `start`, `resume`, `until`, `step` or iterates over it. Any other thread
    may call `pause` and `signal`: they take effect at the next boundary between two steps.

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
        Where to record the run.
    digest_every
        Record a digest of the buffers after every n-th step of a phase that has one; 0 is off.
    forked_from
        The id of the run that this one shares its past with.
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
        request: Any = None,
        journal: "JournalWriter | None" = None,
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
        program = machine.program(interpreter)
        self._program = program
        self._timeline = Timeline(machine, program)
        self.saved_arrays: dict[
            tuple[Path, str, str], str
        ] = {}  # folder, name, checksum: file; for snapshots to borrow
        self._interpreter: Interpreter = interpreter
        self._log_steps = log_steps
        self.digest_every = digest_every
        self._digestable = 0  # steps so far that a digest could be taken of
        self._keep = keep
        self._released = False
        self._status = Status.READY
        self._ended_as: Status | None = None  # how the recorded run ends, also while it rests earlier in its past
        self._index = program.index_of(machine.start.name)
        self._rewound_to: int | None = None  # the number of steps, while the run rests in its own past
        self._driver = threading.Lock()  # held by whoever moves the run
        self._pending: deque[Signal[Context]] = deque()
        self._pause_requested = False
        self._attention = False  # something is pending or requested: the one flag that the loop looks at

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        return self._status

    @property
    def phase(self) -> Phase[Context, Any]:
        """The phase that the run rests at, which has not run yet (while running: the one at work)."""
        return self._program.phases[self._index]

    @property
    def step_count(self) -> int:
        """How many steps lie behind the place where the run rests."""
        return len(self._timeline) if self._rewound_to is None else self._rewound_to

    @property
    def recorded_steps(self) -> int:
        """How many steps are recorded: more than `step_count` while the run rests in its own past."""
        return len(self._timeline)

    @property
    def guards(self) -> dict[str, bool]:
        """The present values of the guards of the phase the run rests at."""
        return {atom.name: atom(self.context) for atom in self._program.atoms[self._index]}

    @property
    def events(self) -> list[Event]:
        """The signals and edits that have taken effect, each with the number of the step before which it did."""
        if self._rewound_to is None:
            return list(self._timeline.events)
        return self._timeline.events_before(self._rewound_to)

    def steps(self, first: int = 0, *, future: bool = False) -> Iterator[Step]:
        """The steps taken so far, from number `first` on; with `future`, also those that `goto` went back from."""
        for number in range(first, self.recorded_steps if future else self.step_count):
            yield self._timeline.step(number)

    def step_records(self, first: int, last: int) -> "list[StepRecord]":
        """Steps `first` up to `last` as a journal holds them."""
        return self._timeline.records(first, last)

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.machine.name}: {self._status} at {self.phase.name}, {self.step_count} steps>"

    # --- how it is moved ----------------------------------------------------------------------------------------

    def start(self) -> Status:
        """Begin a ready run and drive it until it ends or pauses."""
        self._drive("start", (Status.READY,))
        return self._status

    def resume(self) -> Status:
        """Drive a paused run on until it ends or pauses."""
        self._drive("resume", (Status.PAUSED,))
        return self._status

    def until(self, breakpoint: Breakpoint) -> Status:
        """Drive on until it rests at a phase, a guard holds or a function of the run gives True (or it ends).

        At least one step is taken, so that the same breakpoint can be used again and again.
        """
        condition, failure = _as_condition(breakpoint), []

        def stop(run: "Run[Context]") -> bool:
            try:
                return condition(run)
            except Exception as error:  # the breakpoint is at fault, not the phase: the run rests here, unharmed
                failure.append(error)
                return True

        self._drive("until", (Status.READY, Status.PAUSED), stop=stop)
        if failure:
            raise failure[0]
        return self._status

    def step(self) -> Step | None:
        """Take one step. None when a signal that was pending ended the run instead."""
        before = self.step_count
        self._drive("step", (Status.READY, Status.PAUSED), stop=_always)
        return self._timeline.step(before) if self.step_count > before else None

    def __iter__(self) -> Iterator[Step]:
        """Step by step, until the run ends or somebody pauses it."""
        if self._status is Status.PAUSED:
            self._pause_requested = False
        try:
            while not self._status.ended and not self._pause_requested:
                before = self.step_count
                self._drive("iterate", (Status.READY, Status.PAUSED), stop=_always, iterating=True)
                if self.step_count > before:
                    yield self._timeline.step(before)
        finally:
            if self._status is Status.PAUSED:
                self._flush()

    def take(self, outcome: Any, *, elapsed_ns: int = 0) -> Step:
        """Take one step with a given outcome instead of running the phase: only `apply` and the guards are called."""
        row = self._program.rows[self._index]

        def loop(stop: Any) -> None:
            if outcome is not None:
                row.apply(self.context, outcome)
            arc = row.arcs[0] if row.select is None else row.arcs[row.select(self.context)]
            self._timeline.arcs.append(arc)
            self._timeline.outcomes.append(outcome)
            self._index = arc.target
            self._timeline.elapsed.append(elapsed_ns)

        before = self.step_count
        self._drive("take a step in", (Status.READY, Status.PAUSED), stop=_always, iterating=True, loop=loop)
        return self._timeline.step(before)

    def pause(self) -> None:
        """Ask the run to rest at the next boundary; of use from any thread and from signal handlers."""
        if self._status.ended:
            raise IllegalMove(f"cannot pause run {self.id}: it is {self._status}; only a run that has not ended pauses")
        self._pause_requested = True
        self._attention = True

    def wait(self, timeout: float | None = None) -> Status:
        """Block until nobody drives the run, at most `timeout` seconds, and give its status."""
        if self._driver.acquire(timeout=-1 if timeout is None else timeout):
            self._driver.release()
        return self._status

    def signal(self, name: str) -> None:
        """Send a signal: taken at once by a resting run, at the next boundary by a running one.

        Raises
        ------
        ValueError
            When the machine has no such signal.
        IllegalMove
            When the run has ended, or rests at a phase that does not take it.
        """
        signal = self.machine.signal(name)
        if self._status.ended:
            raise IllegalMove(f"cannot send {name!r} to run {self.id}: it is {self._status}")
        if self._status is not Status.RUNNING and not self._takes(signal):
            sources = ", ".join(repr(name_of(source)) for source in signal.sources)
            raise IllegalMove(f"run {self.id} rests at {self.phase.name!r}, but {name!r} is taken only at {sources}")
        self._pending.append(signal)
        self._attention = True
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
        with self._resting(f"edit ({name})", (Status.READY, Status.PAUSED)):
            outcome = edit.run(self.context, **arguments)
            self._enter(name, outcome)
            self.resources.sync(self.context)
            return outcome

    def edit_as_recorded(self, name: str, outcome: Any, *, live: bool) -> None:
        """Make an edit by what its arguments came to; unless `live`, the resources need not follow, as in `take`."""
        with self._resting(f"edit ({name})", (Status.READY, Status.PAUSED)):
            self._enter(name, outcome)
            if live:
                self.resources.sync(self.context)

    def _enter(self, name: str, outcome: Any) -> None:
        self._begin()
        try:
            self.machine.edit(name).apply(self.context, outcome)
        except BaseException:
            self._timeline.fold(self.context, self.step_count, self._timeline.events)
            raise
        self._timeline.events.append(Event(self.step_count, "edit", name, outcome))
        self._flush()
        self._log("info", "run.edited", edit=name)

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
        with self._resting("go to a step of", tuple(set(Status) - {Status.RUNNING})):
            if not 0 <= number <= self.recorded_steps:
                raise IllegalMove(f"run {self.id} has {self.recorded_steps} recorded steps; there is no place {number}")
            if self._released:
                raise IllegalMove(f"run {self.id} has ended and given its resources back; start it with keep=True")
            if self._rewound_to is None and self.recorded_steps:
                self._flush()  # a loop over the run may have left steps to be written, which are soon behind
            self._begin(cut=False)
            present = number == self.recorded_steps
            events = self._timeline.events if present else self._timeline.events_before(number)
            self._index = self._timeline.fold(self.context, number, events)
            self._rewound_to = None if present else number
            if self._status is not Status.READY:
                self._status = (present and self._ended_as) or Status.PAUSED
            self.resources.sync(self.context)

    def back(self, steps: int = 1) -> None:
        """Go back so many steps."""
        self.goto(self.step_count - steps)

    def fork(self, at: int | None = None, *, journal: "JournalWriter | None" = None) -> "Run[Context]":
        """A second run that has the same past up to step `at` (unless given: up to here) and a future of its own."""
        with self._resting("fork", tuple(set(Status) - {Status.RUNNING})):
            number = self.step_count if at is None else at
            if not 0 <= number <= self.recorded_steps:
                raise IllegalMove(f"run {self.id} has {self.recorded_steps} recorded steps; there is no place {number}")
            if self._released:
                raise IllegalMove(f"run {self.id} has ended and given its resources back; start it with keep=True")
            self._begin(cut=False)
            events = self.events if number == self.step_count else self._timeline.events_before(number)
            context = self.resources.fork(self.context)
            fork = Run(
                self.machine, context, interpreter=self._interpreter, log_steps=self._log_steps, keep=self._keep,
                resources=self.resources, request=self.request, journal=journal,
                digest_every=self.digest_every, forked_from=self.id,
            )  # fmt: skip
            return fork._adopt(self._timeline.copy(number, events))

    def _adopt(self, timeline: Timeline[Context]) -> Self:
        """Begin with a past: rest, paused, at its end."""
        self._timeline = timeline
        self._index = timeline.fold(self.context, len(timeline), timeline.events)
        self.resources.sync(self.context)
        self._status = Status.PAUSED
        if self.phase.final:
            self._end()
        else:
            self._flush()
        return self

    def snapshot(self, path: str | PathLike[str], *, borrow: bool = True, **options: Any) -> None:
        """Save a resting run to a file that `statemachine.snapshot.load` reads, in any process.

        Parameters
        ----------
        borrow
            Leave out arrays that an earlier snapshot of this run in the same folder holds, and refer to it.
        options
            How the resources are to be saved, for `Resources.save`; recorded in the file.
        """
        from statemachine.record.snapshot import save

        with self._resting("save", (Status.READY, Status.PAUSED)):
            self._begin(cut=False)
            save(self, path, borrow=borrow, options=options)

    # --- the loop -----------------------------------------------------------------------------------------------

    def _drive(
        self,
        verb: str,
        allowed: tuple[Status, ...],
        *,
        stop: Callable[["Run[Context]"], bool] | None = None,
        iterating: bool = False,
        loop: Callable[[Any], None] | None = None,
    ) -> None:
        with self._resting(verb, allowed):
            if self._status is Status.PAUSED and not iterating:
                self._pause_requested = False
            first = self._status is Status.READY
            self._begin()
            if first:
                self._log("info", "run.started")
            self._status = Status.RUNNING
            try:
                (loop or self._loop)(self._watched(stop))
                if self.phase.final:
                    self._end()
                else:
                    self._status = Status.PAUSED
                    if not iterating:
                        self._flush()
            except BaseException as error:
                self._fail(error)
                raise
            if stop is None and self._status is Status.PAUSED:
                self._log("info", "run.paused", phase=self.phase.name)
        self._settle()

    def _loop(self, stop: Callable[["Run[Context]"], bool] | None) -> None:
        rows, context, clock, timeline = self._program.rows, self.context, perf_counter_ns, self._timeline
        record_arc, record_outcome, record_time = (
            timeline.arcs.append,
            timeline.outcomes.append,
            timeline.elapsed.append,
        )
        index, then = self._index, clock()
        flush_at = then + FLUSH_NS if self.journal else NEVER
        while True:
            if self._attention:
                if self._heed():
                    return
                index, then = self._index, clock()
            run, apply, select, arcs, final = rows[index]
            if final:
                return
            outcome = run(context)
            if outcome is not None:
                apply(context, outcome)
            arc = arcs[0] if select is None else arcs[select(context)]
            record_arc(arc)
            record_outcome(outcome)
            self._index = index = arc.target
            now = clock()
            record_time(now - then)
            then = now
            if stop is not None:
                if stop(self):
                    return
                then = clock()
            if now >= flush_at:
                self._flush()
                flush_at = now + FLUSH_NS

    def _watched(self, stop: Callable[["Run[Context]"], bool] | None) -> Callable[["Run[Context]"], bool] | None:
        """`stop`, after each step has been logged and digested, where that was asked for."""
        if not self._log_steps and not self.digest_every:
            return stop

        def watch(run: "Run[Context]") -> bool:
            number = run.step_count - 1
            step = run._timeline.step(number)
            if run.digest_every:
                digest = run.machine.phases[step.phase].digest(run.context)
                if digest is not None:
                    if run._digestable % run.digest_every == 0:
                        run._timeline.digests[number] = digest
                    run._digestable += 1
            if run._log_steps:
                fields = {"phase": step.phase, "target": step.target, "guards": dict(step.guards)}
                run._log("debug", "run.step", **fields, elapsed_ns=step.elapsed_ns)
            return stop is not None and stop(run)

        return watch

    def _begin(self, *, cut: bool = True) -> None:
        """Before the run is first touched, keep its origin; before its past is changed, forget what lay ahead."""
        if self._status is Status.READY and not self._timeline.origin:
            self._timeline.origin = host_state.save(self.context)
        if cut and self._rewound_to is not None:
            self._timeline.cut(self._rewound_to)
            if self.journal:
                self.journal.cut(self._rewound_to, events=len(self._timeline.events))
            self._rewound_to = self._ended_as = None

    def _heed(self) -> bool:
        """Take pending signals, then say whether a pause was asked for."""
        self._attention = False
        self._take_signals()
        if self._pending:
            self._attention = True  # one that this phase does not take waits for a phase that does
        if self._pause_requested and not self.phase.final:
            self._pause_requested = False
            return True
        return False

    def _take_signals(self) -> None:
        while self._pending and self._takes(self._pending[0]):
            signal = self._pending.popleft()
            self._begin()
            self._timeline.events.append(Event(self.step_count, "signal", signal.name))
            self._log("info", "run.signal", signal=signal.name, phase=self.phase.name, to=name_of(signal.to))
            self._index = self._program.index_of(name_of(signal.to))

    def _settle(self) -> None:
        """Take the signals that are pending while nobody drives the run."""
        while self._pending and self._takes(self._pending[0]) and self._driver.acquire(blocking=False):
            try:
                self._take_signals()
                if self.phase.final and not self._status.ended:
                    self._end()
                else:
                    self._flush()
            finally:
                self._driver.release()

    def _takes(self, signal: Signal[Context]) -> bool:
        if self.phase.final or self._status.ended:
            return False
        return not signal.sources or self.phase.name in [name_of(source) for source in signal.sources]

    def _resting(self, verb: str, allowed: tuple[Status, ...]) -> "_Resting":
        """Hold the run still, or refuse: it is being driven, or has none of these statuses."""
        return _Resting(self, verb, allowed)

    # --- how it ends --------------------------------------------------------------------------------------------

    def _end(self) -> None:
        assert isinstance(self.phase, End)
        self._status = self._ended_as = self.phase.status
        self._log("info", "run.finished", status=str(self._status))
        self._flush()
        if not self._keep:
            self.close()

    def _fail(self, error: BaseException) -> None:
        """Rest, failed, at the phase that raised, with the context as it was before it."""
        self._status = self._ended_as = Status.FAILED
        timeline, whole = self._timeline, self.step_count
        if len(timeline.arcs) > whole:  # an interrupt came while the step was being recorded: it does not count
            self._index = timeline.arcs[whole].source
            del timeline.arcs[whole:], timeline.outcomes[whole:]
        phase = self.phase.name
        self._log("error", "run.failed", phase=phase, error=repr(error))
        try:
            if not isinstance(error, JournalError):
                timeline.fold(self.context, whole, timeline.events)
                if self.journal:
                    self.journal.write(self, error)
        except JournalError as lost:  # what went wrong in the phase matters more
            self._log("error", "run.journal_lost", error=str(lost))
        finally:
            if not self._keep:
                self.close()
        if isinstance(error, Exception) and not isinstance(error, JournalError):
            raise PhaseError(run_id=self.id, phase=phase, step=whole, cause=error) from error

    def close(self) -> None:
        """Give the resources back; a run that has not ended can go no further."""
        if not self._released:
            self._released = True
            self.resources.release(self.context)
            if self.journal:
                try:
                    if not self._status.ended:
                        self.journal.write(self)
                finally:
                    self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _flush(self) -> None:
        if self.journal:
            self.journal.write(self)

    def _log(self, level: str, event: str, **fields: Any) -> None:
        emit(level, event, run_id=self.id, machine=self.machine.name, step=self.step_count, **fields)


class _Resting:
    """Holds a run's lock for a `with` block, if the run rests with an allowed status."""

    __slots__ = ("_run",)

    def __init__(self, run: Run[Any], verb: str, allowed: tuple[Status, ...]) -> None:
        if not run._driver.acquire(blocking=False):
            raise IllegalMove(f"cannot {verb} run {run.id}: it is being driven by another thread or from within itself")
        if run._status not in allowed:
            run._driver.release()
            expected = " or ".join(sorted(allowed))
            raise IllegalMove(f"cannot {verb} run {run.id}: it is {run._status}, not {expected}")
        if run._released and not run._status.ended:
            run._driver.release()
            raise IllegalMove(f"cannot {verb} run {run.id}: it was closed")
        self._run = run

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        self._run._driver.release()


def _always(run: Run[Any]) -> bool:
    return True


def _as_condition(breakpoint: Breakpoint) -> Callable[[Run[Any]], bool]:
    if isinstance(breakpoint, Phase):
        return lambda run: run.phase is breakpoint
    if isinstance(breakpoint, Guard):
        return lambda run: breakpoint(run.context)
    return breakpoint
