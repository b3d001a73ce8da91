"""A run: one execution of a machine over one context, that rests only between steps."""

from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any, Self, TypeVar

from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase, Status
from statemachine.definition.table import Edit, name_of
from statemachine.definition.variable import Value
from statemachine.errors import IllegalMove
from statemachine.execution import host_state
from statemachine.execution.answers import Answers
from statemachine.execution.lifecycle import ANY, AT_REST, FREE, Lifecycle
from statemachine.execution.recorder import Recorder
from statemachine.execution.timeline import Event, Forgotten, Frame, Step, Timeline
from statemachine.execution.travel import state_at

Context = TypeVar("Context")

Breakpoint = Phase[Any, Any] | Guard[Any] | Callable[["Run[Any]"], bool]


class Run(Answers[Context]):
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
        Remember at least so many of the last steps, signals and edits, taken together, and forget older ones once they
        are about twice as many; a journal still gets all. Unless given, all are remembered.
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

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def recorded_steps(self) -> int:
        """How many steps are recorded: more than `step_count` while the run rests in its own past."""
        return self.timeline.count

    @property
    def guards(self) -> dict[str, Value]:
        """The present values of the guards and choices of the phase the run rests at."""
        return {atom.name: atom.value(self.context) for atom in self._program.atoms[self._cursor.index]}

    def steps(self, first: int = 0, *, future: bool = False) -> Iterator[Step]:
        """The steps taken so far, from number `first` on; with `future`, also those that `goto` went back from."""
        for number in range(max(first, self.timeline.first), self.recorded_steps if future else self.step_count):
            yield self.timeline.step(number)

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.machine.name}: {self.status} at {self.phase.name}, {self.step_count} steps>"

    # --- how it is moved ----------------------------------------------------------------------------------------------

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
        self._look_up()
        self._torn = False
        self._tell()
        self._log("info", "run.edited", edit=name)

    # --- time travel --------------------------------------------------------------------------------------------------

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
            Lifecycle.saver(self, path, history=history, share=share, options=options)

        self._move("save", AT_REST, save)

    # --- its end ------------------------------------------------------------------------------------------------------

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
