"""What a debugger does with the runs of any machine, without any screen: moves go in, why they ended comes out."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from phases.debugger import inputs, vocabularies
from phases.debugger.branches import Branch, Branches
from phases.debugger.breakpoints import Breakpoint, Breakpoints, Judge
from phases.debugger.conditions import Vocabulary
from phases.debugger.errors import DebuggerError, users_code
from phases.debugger.failure import Failure
from phases.debugger.fields import Field, fields_of
from phases.debugger.timeline import Moment, moments
from phases.debugger.values import part, short
from statemachine import JournalWriter, PhaseError, Run, Status, Step
from statemachine.execution.timeline import Event

Context = TypeVar("Context")

PATIENCE = 0.3  # seconds that a screen waits for what the last step changed


class Record(Protocol):
    """A recorded run that is walked instead of driven."""

    notice: str  # what is to be known about how it ends

    @property
    def at_end(self) -> bool: ...

    @property
    def end(self) -> str:
        """How it ends, in words."""
        ...

    def advance(self, stop: Callable[[Run[Any]], bool]) -> None:
        """Walk on to the first place where `stop` says so, or to the end; raises DebuggerError there."""
        ...


class Session(Generic[Context]):
    """Runs that are stepped, rewound and forked, and the breakpoints they share.

    Not for several threads at once, but `pause` and `progress` may be called from any while another moves the run.

    Parameters
    ----------
    run
        The first run, started with `keep=True`.
    record
        What is walked, if the run is not driven.
    origin
        Where it comes from, in words.
    saved
        Makes a run of what a snapshot holds.
    """

    def __init__(
        self,
        run: Run[Context],
        record: Record | None = None,
        origin: str = "",
        saved: Callable[[Path], Run[Context]] | None = None,
    ) -> None:
        self.branches = Branches(run, origin)
        self.breakpoints = Breakpoints()
        self.record = record
        self._recorded = run.journal.path if isinstance(run.journal, JournalWriter) else None
        self.pausing = False  # somebody wants the move under way to end at the next boundary
        self._run_of = saved
        self._saved: set[Path] = set()
        self._too_large = False  # to be compared with what it was, at every step

    def close(self) -> None:
        """Give back what the runs hold."""
        self.branches.close()

    @property
    def branch(self) -> Branch[Context]:
        """The run that is shown, and what the debugger knows of it."""
        return self.branches.shown

    @property
    def run(self) -> Run[Context]:
        return self.branch.run

    @property
    def waits(self) -> bool:
        """Whether the run waits for an answer."""
        return self.run.status is Status.WAITING

    # --- what a kind of machine does otherwise ------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """What conditions may speak of."""
        return vocabularies.of_context(self.run)

    def judge(self, run: Run[Context]) -> Judge:
        """Tells which conditions hold where this run rests, after the step that it just took."""
        here = {"step": run.step_count, "phase": run.phase.name}
        return lambda condition: condition.holds(lambda name: here[name] if name in here else part(run.context, name))

    def words(self, step: Step) -> str:
        """What came of a step."""
        return "" if step.outcome is None else short(step.outcome)

    # --- moving -------------------------------------------------------------------------------------------------

    def step(self, count: int = 1) -> str:
        """Take so many steps; says why it stopped, "" if they were all taken."""
        until = self.run.step_count + positive(count)
        return self.advance(lambda run: run.step_count >= until)

    def run_on(self) -> str:
        """Go on until a breakpoint, a pause or the end."""
        return self.advance(lambda run: False)

    def pause(self) -> None:
        """Rest at the next boundary; from any thread."""
        self.pausing = True

    def advance(self, enough: Callable[[Run[Context]], bool]) -> str:
        """Go on until it is enough, or what `run_on` stops at; says why it stopped, "" if it was enough.

        A run that failed tries the phase again that raised.
        """
        reason = ""

        def stop(run: Run[Any]) -> bool:
            nonlocal reason
            hit = self.breakpoints.hit(run, self.judge(run))
            if enough(run) or hit or self.pausing:
                reason = f"breakpoint {hit.number} ({hit})" if hit else "paused" if self.pausing else ""
                return True
            return False

        try:
            if self.record is not None:
                self.record.advance(stop)
                return self.record.end if self.record.at_end else reason
            if self.run.status.over:
                raise DebuggerError(f"the run has ended ({self.run.status}): go back to go on from there")
            if self.waits:
                raise DebuggerError(f"the run waits at {self.run.phase.name} for {self._awaited(example=True)}")
            with users_code(f"phase {self.run.phase.name}"):
                self.run.until(stop)
        except PhaseError as error:
            self.branch.failure = Failure.of(error)
            return f"failed in {error.phase}: {self.branch.failure.message}"
        finally:
            self.pausing = False
        if self.waits and not reason:
            return f"waits at {self.run.phase.name} for {self._awaited()}"
        return str(self.run.status) if self.run.status.ended else reason

    def _awaited(self, *, example: bool = False) -> str:
        """What a run that waits is waiting for, in words."""
        if self.run.waits_for_signals:
            return f"a signal: {', '.join(self.run.possible.signals)}"
        return "its answer, as in answer true" if example else "its answer"

    def back(self, count: int = 1) -> None:
        """Go back so many steps."""
        self.goto(self.run.step_count - positive(count))

    def goto(self, number: int) -> None:
        """Rest where the run rested after so many steps, back or ahead in what is recorded."""
        first = self.run.timeline.first
        if not first <= number <= self.run.recorded_steps:
            where = "the start" if number < first else "the last recorded step"
            raise DebuggerError(
                f"expected a step from {first} to {self.run.recorded_steps}, but {number} lies past {where}"
            )
        with users_code("going there"):
            self.run.goto(number)

    def break_at(self, kind: str, target: str) -> Breakpoint:
        """Set a breakpoint: kind "phase", "guard" or "if"; raises DebuggerError or ConditionError."""
        return self.breakpoints.add(self.run.machine, kind, target, self.vocabulary)

    # --- what comes from outside --------------------------------------------------------------------------------

    def signal(self, name: str, payload: Any = None) -> None:
        """Send a signal to the run."""
        self.refuse_record("send a signal")
        with users_code(f"signal {name}"):
            self.run.signal(name, payload)

    def answer(self, outcome: Any) -> None:
        """Give a waiting run what it waits for."""
        self.refuse_record("answer")
        with users_code(f"this answer to {self.run.phase.name}"):
            self.run.answer(outcome)

    def time_out(self) -> None:
        """Answer as if the deadline of a waiting run had passed."""
        self.refuse_record("answer")
        with users_code(f"the deadline of {self.run.phase.name}"):
            self.run.time_out()

    def edit(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Make a change that the machine knows; gives what it came to."""
        self.refuse_record("change anything")
        with users_code(f"edit {name}"):
            return self.run.edit(name, **arguments)

    # --- several runs -------------------------------------------------------------------------------------------

    def open(self, run: Run[Context], origin: str) -> Branch[Context]:
        """Hold another run, and show it."""
        return self.branches.open(run, origin)

    def fork(self, at: int | None = None) -> Branch[Context]:
        """Open a second run with the same past, and switch to it; recorded beside the first one, if that one is."""
        self.refuse_record("fork")
        number, place = self.branch.number, self.run.step_count if at is None else at
        journal = self._journal_of_next()
        try:
            with users_code("forking"):
                fork = self.run.fork(at, journal=journal)
        except BaseException:
            if journal is not None:
                journal.close()
                journal.path.unlink()
            raise
        recorded = "" if journal is None else f", recorded in {journal.path.name}"
        return self.open(fork, f"fork of {number} at step {place}{recorded}")

    def _journal_of_next(self) -> JournalWriter | None:
        """Where the next run is recorded, if the first one is: beside it, under the number of the run."""
        if self._recorded is None:
            return None
        return JournalWriter(self._recorded.with_stem(f"{self._recorded.stem}-{self.branches.next}"))

    def save(self, path: Path) -> None:
        """Write a snapshot; never over a file that this session did not write."""
        self.refuse_record("save")
        path = path.expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise DebuggerError(f"{path} exists already; choose another name")
        if self.run.status.over:
            raise DebuggerError(f"the run has ended ({self.run.status}): go back a step to save it")
        with users_code("saving"):
            self.run.snapshot(path)
        self._saved.add(path.resolve())

    def load(self, path: Path) -> Branch[Context]:
        """Open a snapshot as another run, and switch to it."""
        self.refuse_record("load a snapshot")
        if self._run_of is None:
            raise DebuggerError("there is nothing here that makes a run of a snapshot")
        with users_code("loading"):
            run = self._run_of(path.expanduser())
        return self.open(run, f"loaded from {path.name}")

    def refuse_record(self, what: str) -> None:
        """Raise DebuggerError where there is only a record."""
        if self.record is not None:
            raise DebuggerError(f"a record is only walked, so one cannot {what}; phasewalk replay goes on from one")

    # --- seeing -------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """How the run stands, in a word."""
        if self.record is not None and not self.run.status.ended:
            return "recorded"
        return str(self.run.status)

    @property
    def notice(self) -> str:
        """What is to be known about the place where it rests: why the run failed, how the record ends."""
        if self.record is not None and self.record.at_end:
            return self.record.notice
        return self.branch.failure.message if self.run.status is Status.FAILED and self.branch.failure else ""

    def where(self) -> str:
        """One line that says where the run rests."""
        run = self.run
        return (
            f"run {self.branch.number}  {self.status}  at {run.phase.name}{inputs.until(run)}  "
            f"step {run.step_count} of {run.recorded_steps}"
        )

    def progress(self) -> tuple[str, int]:
        """Phase and steps at this moment; from any thread, also while the run is moved."""
        return self.run.phase.name, self.run.step_count

    def fields(self, *, always: bool = True, room: int = 200) -> tuple[Field, ...]:
        """The context's fields; unless `always`, what the last step changed is told only where it is soon found out."""
        began = monotonic()
        found = fields_of(self.run, room=room, compare=always or not self._too_large)
        if not always:
            self._too_large = self._too_large or monotonic() - began > PATIENCE
        return found

    @property
    def compares(self) -> bool:
        """Whether a screen is told at each step what changed."""
        return not self._too_large

    def happenings(self) -> list[tuple[int, str]]:
        """The signals and edits so far, each with the number of the step before which it took effect."""
        return self.happenings_of(self.branch)

    def happenings_of(self, branch: Branch[Context]) -> list[tuple[int, str]]:
        """The same of any of the runs."""
        return [(event.number, _told(event)) for event in branch.run.events]

    def moments(self, first: int, last: int) -> Iterator[Moment]:
        """Steps on the timeline, those ahead of the place where it rests included."""
        return moments(self.run, first, last, self.words)


def _told(event: Event) -> str:
    """Something that came from outside, in words."""
    carried = "" if event.outcome is None else f": {short(event.outcome)}"
    return f"{event.kind} {event.name}{carried}{f'; {event.reason}' if event.reason else ''}"


def positive(count: int) -> int:
    """A count that makes sense; raises DebuggerError."""
    if count < 1:
        raise DebuggerError(f"expected a count of at least 1, not {count}")
    return count
