"""A run: one execution of a machine over one context, that rests only between steps."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from time import perf_counter_ns
from typing import Any, ClassVar, Self, TypeVar

from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase, Status, Wait
from statemachine.definition.program import Door
from statemachine.definition.raised import Raised
from statemachine.definition.table import Edit, Signal, name_of
from statemachine.definition.variable import Value
from statemachine.errors import IllegalMove
from statemachine.execution import host_state
from statemachine.execution.driver import Busy
from statemachine.execution.inbox import Possible, Sent
from statemachine.execution.lifecycle import LOOK_UP_NS, Lifecycle
from statemachine.execution.recorder import Recorder
from statemachine.execution.tasks import each_in_thread, in_thread
from statemachine.execution.timeline import Forgotten, Frame, Step, Timeline
from statemachine.execution.travel import state_at

Context = TypeVar("Context")

FREE = (Status.READY, Status.PAUSED, Status.FAILED)  # to take a step
AT_REST = (*FREE, Status.WAITING)
RECEPTIVE = (Status.READY, Status.PAUSED, Status.WAITING)  # to signals
ANY = tuple(status for status in Status if status is not Status.RUNNING)

Breakpoint = Phase[Any, Any] | Guard[Any] | Callable[["Run[Any]"], bool]


def _always() -> bool:
    return True


class Run(Lifecycle[Context]):
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
    keep_steps
        Remember at least so many of the last steps, and forget older ones, with the events among them, once they are
        about twice as many; a journal still gets all. Unless given, all are remembered.
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

    # Of `record`, and joined to this class by the package: writes snapshots; makes an answer or a payload what its
    # phase or signal declares.
    saver: ClassVar[Callable[..., None]]
    typed: ClassVar[Callable[[Any, Phase[Any, Any] | Signal[Any, Any]], Any]]

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def recorded_steps(self) -> int:
        """How many steps are recorded: more than `step_count` while the run rests in its own past."""
        return self.timeline.count

    @property
    def guards(self) -> dict[str, Value]:
        """The present values of the guards and choices of the phase the run rests at."""
        return {atom.name: atom.value(self.context) for atom in self._program.atoms[self._cursor.index]}

    @property
    def possible(self) -> Possible:
        """The names of the signals and edits that would be taken now; of use from any thread.

        While some thread moves the run, those that it will take wherever it comes to rest: signals that no phase and no
        guard keeps back. Raises GuardError as the guard of a signal does.
        """
        names = tuple(dict.fromkeys(signal.name for signal in self.machine.signals))

        def read() -> Possible:
            status, phase = self.status, self.phase_name
            if self._released or self._torn or phase != self.phase_name:
                return Possible()
            return Possible(
                tuple(name for name in names if self._door(name) is not None) if status in RECEPTIVE else (),
                tuple(edit.name for edit in self.machine.edits if edit.may_be_made_at(phase))
                if status in AT_REST else (),
            )  # fmt: skip

        found = self._driver.undisturbed(read)
        return Possible(() if self._status.ended else self._program.always) if found is None else found

    def steps(self, first: int = 0, *, future: bool = False) -> Iterator[Step]:
        """The steps taken so far, from number `first` on; with `future`, also those that `goto` went back from."""
        for number in range(max(first, self.timeline.first), self.recorded_steps if future else self.step_count):
            yield self.timeline.step(number)

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.machine.name}: {self.status} at {self.phase.name}, {self.step_count} steps>"

    # --- how it is moved ----------------------------------------------------------------------------------------

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

    def __aiter__(self) -> AsyncIterator[Step]:
        """Step by step, in a thread of its own; cancelling the task pauses the run."""
        return each_in_thread(iter(self), stop=self._ask_to_rest)

    def _ask_to_rest(self) -> None:
        with suppress(IllegalMove):  # it has ended meanwhile
            self.pause()

    def until(self, breakpoint: Breakpoint) -> Status:
        """Drive on until it rests at a phase, a guard holds or a function of the run gives True (or it ends or waits).

        At least one step is taken, so that the same breakpoint can be used again and again.
        """
        condition, failure = _as_condition(breakpoint), []

        def stop() -> bool:
            try:
                return condition(self)
            except Exception as error:  # the breakpoint is at fault, not the phase: the run rests here, unharmed
                failure.append(error)
                return True

        self._move("until", FREE, lambda: self._drive(stop=stop))
        if failure:
            raise failure[0]
        return self.status

    def step(self) -> Step | None:
        """Take one step. None when there was none to take: a signal that was pending ended the run, or it waits."""
        return self._move("step", FREE, lambda: self._step(pausable=False))

    def __iter__(self) -> Iterator[Step]:
        """Step by step, until the run ends or waits, or somebody pauses it."""
        return self._iterate(_always)

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

    # --- what it waits for --------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When to call `time_out`, in seconds since the epoch; None: never, or the run does not wait."""
        phase = self.phase
        return phase.deadline(self.context) if self.status is Status.WAITING and isinstance(phase, Wait) else None

    @property
    def waits_for_signals(self) -> bool:
        """Whether it rests at a `Wait` that no transition leaves, and that takes no answer."""
        return isinstance(self.phase, Wait) and not self._program.rows[self._cursor.index].arcs

    def answer(self, outcome: Any) -> Step:
        """Give a waiting run the outcome of its phase: it is entered and recorded, and the run rests at the next phase.

        Parameters
        ----------
        outcome
            Of the type that the phase declares, or the plain JSON values that a record would hold of it.

        Raises
        ------
        OutcomeError
            When it is not of that type, or JSON cannot hold it; the run still waits, as it does whatever is raised.
        IllegalMove
            When the run does not wait, or waits for signals alone.
        """
        return self._move("answer", (Status.WAITING,), self._answer, outcome)

    def time_out(self) -> Step:
        """Answer for a deadline that has passed, as the phase says (`Wait.late`); the clock is the caller's."""

        def late() -> Step:
            self._check_answerable()
            assert isinstance(self.phase, Wait)  # for it waits
            return self._answer(self.phase.late(self.context))

        return self._move("time out", (Status.WAITING,), late)

    def _answer(self, outcome: Any) -> Step:
        program, index = self._program, self._cursor.index
        if not program.rows[index].arcs:
            self._check_answerable()
        answer = Run.typed(outcome, program.phases[index])
        try:
            if self.timeline.rewound is not None:  # only for one that can be entered is what lies ahead forgotten
                scratch = host_state.scratch(self.context, host_state.save(self.context))
                self._program.step(self._cursor.index, scratch, answer)
                self._begin(on=True)
            self._torn = True
            self._enter(answer, 0)
        except Exception as error:
            error.add_note(f"{self.phase.name!r} could not enter this answer, and run {self.id} still waits for one")
            self._mend()
            raise
        now = perf_counter_ns()
        if self._keep_steps or now >= self._cursor.due:
            self._cursor.due = now + LOOK_UP_NS
            self._remember(now)
        self._torn = False
        self._rest()
        return self.timeline.last()

    def _check_answerable(self) -> None:
        if not self._program.rows[self._cursor.index].arcs:
            signals = ", ".join(map(repr, self._program.doors[self._cursor.index]))
            raise IllegalMove(f"run {self.id} waits at {self.phase.name!r} for a signal, not for an answer: {signals}")

    def pause(self) -> None:
        """Ask the run to rest at the next boundary; of use from any thread and from signal handlers."""
        if self._status.ended:
            raise IllegalMove(f"cannot pause run {self.id}: it is {self._status}; only a run that has not ended pauses")
        self._inbox.ask_to_pause()

    def wait(self, timeout: float | None = None) -> Status:
        """Block until nobody drives the run, at most `timeout` seconds, and give its status."""
        self._driver.wait(timeout)
        return self.status

    def rest(self) -> None:
        """Let the run rest, begun, where it stands, at its start perhaps; the recorder is told."""

        def rest() -> None:
            if self._status is Status.READY:
                self._begin()
                self._log("info", "run.started")
                self._status = Status.PAUSED
            self._rest()

        self._move("rest", AT_REST, rest)

    def signal(self, name: str, payload: Any = None, *, wait: bool = False) -> None:
        """Send a signal: taken at once by a resting run, at a boundary by a running one.

        At each boundary the first signal that can be taken there is taken; the others wait for a phase, and a context,
        where they can be. One that still waits when the run ends, or whose payload cannot be entered when its turn
        comes, is refused: recorded with the reason and logged, and the run goes on as if it had not been sent.

        Parameters
        ----------
        payload
            Of the type that the signal declares, or the plain JSON values that a record would hold of it.
        wait
            Where a resting run cannot take it now, let it wait too.

        Raises
        ------
        ValueError
            When the machine has no such signal.
        OutcomeError
            When the payload is not of that type, or JSON cannot hold it, or the signal carries none.
        IllegalMove
            When the run has ended, or rests and cannot take it now: at another phase, or as its guard does not hold.
        GuardError
            When that guard raises.
        Exception
            Whatever a resting run's signal raises in `apply`; the run is as it was, as it is whatever is raised.
        """
        signal = self.machine.signals_named(name)[0]
        if payload is not None or signal.carries:
            payload = Run.typed(payload, signal)
        sent = Sent(name, payload)
        try:
            return self._move("signal", RECEPTIVE, self._signal, sent, wait)
        except Busy:
            self._leave(sent)

    def _leave(self, sent: Sent) -> None:
        """Leave a signal to whoever moves the run."""
        ended = f"cannot signal run {self.id}: it is {self._status}"
        if self._status.ended:
            raise IllegalMove(ended)
        self._inbox.send(sent)
        self._settle()
        if self._status.over and self._inbox.take_out(sent):  # it ended meanwhile, and has not seen it
            raise IllegalMove(f"cannot signal run {self.id}: it is {self._status}")

    def _signal(self, sent: Sent, wait: bool = False, live: bool = True) -> None:
        door = self._door(sent.name)
        if door is not None:
            if self.timeline.origin is None:
                self._begin()
            self._torn = True
            if door.apply is not None:
                self._enter_payload(door, sent)
            self._pass(door, sent, live=live)
            self._torn = False
            self._rest()
        elif wait:
            self._inbox.send(sent)
            self._tell()  # so that it is in the record, wherever the process ends
        else:
            raise IllegalMove(self._kept_back(sent.name))

    def _enter_payload(self, door: Door[Context], sent: Sent) -> None:
        try:
            self._apply_payload(door, sent.payload)
        except Exception as error:
            self._torn = False
            error.add_note(f"signal {sent.name!r} could not enter its payload, and run {self.id} is as it was")
            raise

    def _kept_back(self, name: str) -> str:
        """Why a resting run does not take a signal, in words."""
        entries = self.machine.signals_named(name)
        here = [entry for entry in entries if not entry.sources or self.phase_name in map(name_of, entry.sources)]
        if here and not self.phase.final:
            return f"run {self.id} takes {name!r} at {self.phase_name!r} only when {here[0].condition}"
        sources = ", ".join(repr(name_of(source)) for entry in entries for source in entry.sources)
        return f"run {self.id} rests at {self.phase_name!r}, but {name!r} is taken only at {sources}"

    def signal_as_recorded(self, name: str, payload: Any, *, live: bool) -> None:
        """Take a signal that carries what a record says; unless `live`, the resources need not follow, as in `take`."""
        self._move("signal", RECEPTIVE, self._signal, Sent(name, payload), False, live)

    def refuse_as_recorded(self, name: str, payload: Any, reason: str) -> None:
        """Record a signal that was refused, at the place where the run rests, or at its end.

        Raises
        ------
        IllegalMove
            When the run would take it here, or let it wait.
        """

        def refuse() -> None:
            if fate := self._fate(name, payload):
                raise IllegalMove(f"run {self.id} {fate} {name!r} at {self.phase_name!r}")
            self._begin()
            self._refuse(Sent(name, payload), reason)
            self._tell()

        self._move("refuse a signal to", ANY, refuse)

    def _fate(self, name: str, payload: Any) -> str:
        """What would become of a signal that was sent while the run was running; "": it would be refused."""
        if self.phase.final:
            return ""
        try:
            if (door := self._door(name)) is None:
                return "lets wait"
            if door.apply is not None:
                door.apply(host_state.scratch(self.context, host_state.save(self.context)), payload)
        except Exception:
            return ""
        return "takes"

    def wait_as_recorded(self, sent: Sequence[tuple[str, Any]]) -> None:
        """Let signals wait that a record says were pending, as `signal` does; the recorder is told."""
        for name, payload in sent:
            self._inbox.send(Sent(name, payload))
        self._move("signal", ANY, self._tell)

    def edit(self, name: str, /, **arguments: Any) -> Any:
        """Make a change that the machine knows to a resting run; it is recorded. Gives what the arguments came to.

        Raises
        ------
        ValueError
            When there is no such edit or its arguments make no sense; nothing is changed then.
        IllegalMove
            When the run is running or has ended, or rests at a phase at which this edit may not be made.
        """
        edit = self.machine.edit(name)

        def change() -> Any:
            self._check_edit(edit)
            outcome = edit.run(self.context, **arguments)
            if self.journal:
                self.journal.accept(outcome)
            self._enter_edit(name, outcome)
            return outcome

        return self._move(f"edit ({name})", AT_REST, change)

    def edit_as_recorded(self, name: str, outcome: Any, *, live: bool) -> None:
        """Make an edit by what its arguments came to; unless `live`, the resources need not follow, as in `take`."""

        def change() -> None:
            self._check_edit(self.machine.edit(name))
            self._enter_edit(name, outcome, live=live)

        self._move(f"edit ({name})", AT_REST, change)

    def _check_edit(self, edit: Edit[Context, Any]) -> None:
        if not edit.may_be_made_at(self.phase_name):
            places = ", ".join(repr(name_of(source)) for source in edit.sources)
            raise IllegalMove(
                f"run {self.id} rests at {self.phase_name!r}, but edit {edit.name!r} may be made only at {places}"
            )

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
                    keep_steps=self._keep_steps, resources=self.resources, request=self.request, journal=journal,
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

    def begin_at(self, number: int, phase: str, fields: dict[Any, Any], *, digestible: int = 0) -> None:
        """Let a ready run begin, paused, after so many steps, at this phase, with these host fields: without a past.

        `digestible` of those steps count where a digest is due. The resources are not told; whoever calls this sees to
        them.
        """

        def begin() -> None:
            self.timeline.origin = Frame(number, self._program.index_of(phase), fields)
            self.timeline.forgotten = Forgotten(digestible=digestible)
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

    # --- its end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the resources back; a run that has not ended can go no further.

        Raises
        ------
        IllegalMove
            When another thread drives the run: pause it and wait first.
        """
        if not self._given_back:
            self._move("close", ANY, self._release)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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


def _as_condition(breakpoint: Breakpoint) -> Callable[[Run[Any]], bool]:
    if isinstance(breakpoint, Phase):
        return lambda run: run.phase is breakpoint
    if isinstance(breakpoint, Guard):
        return lambda run: breakpoint(run.context)
    return breakpoint
