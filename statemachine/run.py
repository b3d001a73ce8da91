"""A run: one execution of a machine over one context, that rests only between steps."""

import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, Generic, TypeVar
from uuid import uuid4

from statemachine import host_state
from statemachine.errors import IllegalMove, PhaseError
from statemachine.guard import Guard
from statemachine.log import emit
from statemachine.machine import Interpreter, Machine
from statemachine.phase import End, Phase, Status
from statemachine.program import Arc
from statemachine.table import Signal, name_of

Context = TypeVar("Context")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the phase that ran, what it found out, and where its guards sent the run."""

    number: int
    phase: str
    target: str
    guards: Mapping[str, bool]
    outcome: Any
    elapsed_ns: int = field(compare=False)


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
    on_end
        Called once, with this run, when it is done, failed or cancelled.
    """

    def __init__(
        self,
        machine: Machine[Context],
        context: Context,
        *,
        run_id: str | None = None,
        interpreter: Interpreter = "compiled",
        log_steps: bool = False,
        on_end: Callable[["Run[Context]"], None] | None = None,
    ) -> None:
        self.machine = machine
        self.context = context
        self.id = run_id or uuid4().hex[:12]
        self.signals_taken: list[tuple[int, str]] = []  # (number of the step before which it was taken, its name)
        self._program = machine.program(interpreter)
        self._log_steps = log_steps
        self._on_end = on_end
        self._status = Status.READY
        self._index = [phase.name for phase in self._program.phases].index(machine.start.name)
        self._arcs: list[Arc] = []  # one entry a step in each of these three: what the steps are made of
        self._outcomes: list[Any] = []
        self._elapsed = array("q")  # ns
        self._origin: dict[Any, Any] = {}  # the context's host fields before the first step
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
        """How many steps have been taken."""
        return len(self._elapsed)

    @property
    def guards(self) -> dict[str, bool]:
        """The present values of the guards of the phase the run rests at."""
        return {atom.name: atom(self.context) for atom in self._program.atoms[self._index]}

    def steps(self, first: int = 0) -> Iterator[Step]:
        """The steps taken so far, from number `first` on."""
        for number in range(first, self.step_count):
            yield self._step_at(number)

    def _step_at(self, number: int) -> Step:
        arc, phases = self._arcs[number], self._program.phases
        guards = {atom.name: bool(arc.guards >> bit & 1) for bit, atom in enumerate(self._program.atoms[arc.source])}
        names = phases[arc.source].name, phases[arc.target].name
        return Step(number, *names, guards, self._outcomes[number], self._elapsed[number])

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
        return self._step_at(before) if self.step_count > before else None

    def __iter__(self) -> Iterator[Step]:
        """Step by step, until the run ends or somebody pauses it."""
        if self._status is Status.PAUSED:
            self._pause_requested = False
        while not self._status.ended and not self._pause_requested:
            before = self.step_count
            self._drive("iterate", (Status.READY, Status.PAUSED), stop=_always, keep_request=True)
            if self.step_count > before:
                yield self._step_at(before)

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

    # --- the loop -----------------------------------------------------------------------------------------------

    def _drive(
        self,
        verb: str,
        allowed: tuple[Status, ...],
        *,
        stop: Callable[["Run[Context]"], bool] | None = None,
        keep_request: bool = False,
    ) -> None:
        if not self._driver.acquire(blocking=False):
            raise IllegalMove(
                f"cannot {verb} run {self.id}: it is being driven by another thread or from within itself"
            )
        try:
            if self._status not in allowed:
                raise IllegalMove(f"cannot {verb} run {self.id}: it is {self._status}, not {' or '.join(allowed)}")
            if self._status is Status.PAUSED and not keep_request:
                self._pause_requested = False
            if self._status is Status.READY:
                self._origin = host_state.save(self.context)
                self._log("info", "run.started")
            self._status = Status.RUNNING
            try:
                self._loop(self._logging(stop) if self._log_steps else stop)
            except BaseException as error:
                self._fail(error)
                raise
            if self.phase.final:
                self._end()
            else:
                self._status = Status.PAUSED
                if stop is None:
                    self._log("info", "run.paused", phase=self.phase.name)
        finally:
            self._driver.release()
            self._settle()

    def _loop(self, stop: Callable[["Run[Context]"], bool] | None) -> None:
        rows, context, clock = self._program.rows, self.context, perf_counter_ns
        record_arc, record_outcome, record_time = self._arcs.append, self._outcomes.append, self._elapsed.append
        index, then = self._index, clock()
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

    def _logging(self, stop: Callable[["Run[Context]"], bool] | None) -> Callable[["Run[Context]"], bool]:
        """`stop`, after each step has been logged."""

        def log_then_stop(run: "Run[Context]") -> bool:
            step = run._step_at(run.step_count - 1)
            fields = {"phase": step.phase, "target": step.target, "guards": dict(step.guards)}
            run._log("debug", "run.step", **fields, elapsed_ns=step.elapsed_ns)
            return stop is not None and stop(run)

        return log_then_stop

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
            self.signals_taken.append((self.step_count, signal.name))
            self._log("info", "run.signal", signal=signal.name, phase=self.phase.name, to=name_of(signal.to))
            self._index = self._program.phases.index(self.machine.phases[name_of(signal.to)])

    def _settle(self) -> None:
        """Take the signals that are pending while nobody drives the run."""
        while self._pending and self._takes(self._pending[0]) and self._driver.acquire(blocking=False):
            try:
                self._take_signals()
                if self.phase.final and not self._status.ended:
                    self._end()
            finally:
                self._driver.release()

    def _takes(self, signal: Signal[Context]) -> bool:
        if self.phase.final or self._status.ended:
            return False
        return not signal.sources or self.phase.name in [name_of(source) for source in signal.sources]

    def _end(self) -> None:
        assert isinstance(self.phase, End)
        self._status = self.phase.status
        self._log("info", "run.finished", status=str(self._status))
        if self._on_end:
            self._on_end(self)

    def _fail(self, error: BaseException) -> None:
        """Rest, failed, at the phase that raised, with the context as it was before it."""
        self._status = Status.FAILED
        whole = self.step_count
        if len(self._arcs) > whole:  # an interrupt came while the step was being recorded: it does not count
            self._index = self._arcs[whole].source
            del self._arcs[whole:], self._outcomes[whole:]
        step, phase = self.step_count, self.phase.name
        self._refold()
        self._log("error", "run.failed", phase=phase, error=repr(error))
        if self._on_end:
            self._on_end(self)
        if isinstance(error, Exception):
            raise PhaseError(run_id=self.id, phase=phase, step=step, cause=error) from error

    def _refold(self) -> None:
        """Rebuild the context's host fields from those before the first step and the outcomes since."""
        host_state.restore(self.context, self._origin)
        for arc, outcome in zip(self._arcs, self._outcomes, strict=True):
            if outcome is not None:
                self._program.rows[arc.source].apply(self.context, outcome)

    def _log(self, level: str, event: str, **fields: Any) -> None:
        emit(level, event, run_id=self.id, machine=self.machine.name, step=self.step_count, **fields)


def _always(run: Run[Any]) -> bool:
    return True


def _as_condition(breakpoint: Breakpoint) -> Callable[[Run[Any]], bool]:
    if isinstance(breakpoint, Phase):
        return lambda run: run.phase is breakpoint
    if isinstance(breakpoint, Guard):
        return lambda run: breakpoint(run.context)
    return breakpoint
