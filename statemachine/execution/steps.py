"""Steps: how a run is moved on, by one or by many, live or from a record."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from time import perf_counter_ns
from typing import Any, TypeVar

from statemachine.definition.phase import Phase, Status
from statemachine.definition.program import Arc
from statemachine.definition.raised import Raised
from statemachine.definition.table import name_of
from statemachine.errors import IllegalMove
from statemachine.execution import company, loop
from statemachine.execution.lifecycle import AT_REST, FREE, LOOK_UP_NS
from statemachine.execution.observing import Stop, observed
from statemachine.execution.signals import Signals
from statemachine.execution.tasks import each_in_thread, in_thread
from statemachine.execution.timeline import Step

Context = TypeVar("Context")

BEHIND_NS = 50_000_000  # a record is never further behind than this, at the next boundary


def _always() -> bool:
    return True


class Steps(Signals[Context]):
    """The moves of a run that take steps."""

    def start(self) -> Status:
        """Begin a ready run and drive it until it ends, pauses or waits."""
        self._move("start", (Status.READY,), self._drive)
        return self.status

    def resume(self) -> Status:
        """Drive a paused run on until it ends, pauses or waits; one that failed tries the phase again that raised."""
        self._move("resume", (Status.PAUSED, Status.FAILED), self._drive)
        return self.status

    async def astart(self) -> Status:
        """`start` in a thread of its own; cancelling the task pauses the run, which then can be resumed."""
        return await in_thread(self.start, stop=self._ask_to_rest)

    async def aresume(self) -> Status:
        """`resume` in a thread of its own; cancelling the task pauses the run, which then can be resumed again."""
        return await in_thread(self.resume, stop=self._ask_to_rest)

    def step(self) -> Step | None:
        """Take one step. None when there was none to take: a signal that was pending ended the run, or it waits."""
        return self._move("step", FREE, lambda: self._step(pausable=False))

    def __iter__(self) -> Iterator[Step]:
        """Step by step, until the run ends or waits, or somebody pauses it."""
        return self._iterate(_always)

    def __aiter__(self) -> AsyncIterator[Step]:
        """Step by step, in a thread of its own; cancelling the task pauses the run."""
        return each_in_thread(iter(self), stop=self._ask_to_rest)

    def _ask_to_rest(self) -> None:
        with suppress(IllegalMove):  # it has ended meanwhile
            self.pause()

    def each(self, phase: Phase[Any, Any] | str) -> Iterator[Step]:
        """Give each step of one phase, until the run ends, waits or is paused; steps of others are taken on the way.

        The run rests after each step that is given, as it does in a loop over all of them, and nowhere else: so this
        costs less.

        Raises
        ------
        ValueError
            If the machine has no phase of that name.
        """
        names, name = self._program.names, name_of(phase)
        if name not in names:
            raise ValueError(f"machine {self.machine.name!r} has no phase {name!r}: expected one of {', '.join(names)}")
        number = names.index(name)
        return self._iterate(lambda: self.timeline.arcs[-1].source == number)

    def _iterate(self, stop: Callable[[], bool]) -> Iterator[Step]:
        again = self._status is Status.FAILED
        if self._status is Status.PAUSED:
            self._inbox.pause = False
        while (again or not self._status.ended) and not self._inbox.pause:
            again = False
            step = self._move("iterate", FREE, lambda: self._step(pausable=True, stop=stop))
            if step and stop():
                yield step
            elif not self._status.ended:  # somebody paused it on the way
                break
            if self.status is Status.WAITING:
                break
        if self._status is Status.PAUSED:
            self._move("iterate", AT_REST, self._tell)

    def _step(self, *, pausable: bool, stop: Callable[[], bool] = _always) -> Step | None:
        before = self.step_count
        self._drive(stop=stop, rests=not pausable)
        return self.timeline.step(self.step_count - 1) if self.step_count > before else None

    def take(self, outcome: Any, *, elapsed_ns: int = 0, digest: Any = None) -> Step:
        """Take one step with a given outcome instead of running the phase: only `apply` and the guards are called.

        A `Raised` stands for an exception: `apply_error` is called, and the step leaves by the error way for it.

        Raises
        ------
        ValueError
            When the phase has no error way of that name.
        """

        def take() -> Step:
            self._check_answerable()
            before, ways = self.step_count, self._program.ways[self._cursor.index]
            if isinstance(outcome, Raised) and outcome.way not in ways:
                known = ", ".join(ways) or "none"
                raise ValueError(f"{self.phase.name!r} has no way on {outcome.way}: expected one of {known}")
            self._drive(loop=lambda: self._enter(outcome, elapsed_ns, digest), rests=False)
            return self.timeline.step(before)

        return self._move("take a step in", AT_REST, take)

    def _check_answerable(self) -> None:
        if not self._program.rows[self._cursor.index].arcs:
            signals = ", ".join(map(repr, self._program.doors[self._cursor.index]))
            raise IllegalMove(f"run {self.id} waits at {self.phase.name!r} for a signal, not for an answer: {signals}")

    def _enter(self, outcome: Any, elapsed_ns: int, digest: Any = None) -> None:
        """Take the step that this outcome of the present phase leads to."""
        timeline, cursor = self.timeline, self._cursor
        raised = outcome.way if isinstance(outcome, Raised) else ""
        arc = self._program.step(cursor.index, self.context, outcome, raised)
        if digest is not None:
            timeline.digests[timeline.count] = digest
        timeline.arcs.append(arc)
        timeline.outcomes.append(outcome)
        cursor.index = arc.target
        timeline.elapsed.append(elapsed_ns)

    # --- driving ------------------------------------------------------------------------------------------------------

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
            self._cursor, company.rows_of(self._program), self.context, self.timeline, heed=self._heed, tend=self._tend,
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
