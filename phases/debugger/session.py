"""What a debugger does with the runs of any machine, without any screen: moves go in, why they ended comes out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from phases.debugger.branches import Branch, Branches
from phases.debugger.breakpoints import Breakpoint, Breakpoints, Judge
from phases.debugger.conditions import Value
from phases.debugger.errors import DebuggerError
from phases.debugger.timeline import Moment, moments
from statemachine import PhaseError, Run, Step

Context = TypeVar("Context")


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

    Not for several threads at once, but `pause` may be called from any while another moves the run.

    Parameters
    ----------
    run
        The first run, started with `keep=True`.
    record
        What is walked, if the run is not driven.
    origin
        Where it comes from, in words.
    """

    def __init__(self, run: Run[Context], record: Record | None = None, origin: str = "") -> None:
        self.branches = Branches(run, origin)
        self.breakpoints = Breakpoints()
        self.record = record
        self.pausing = False  # somebody wants the move under way to end at the next boundary
        self._saved: set[Path] = set()

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

    # --- what a kind of machine adds ----------------------------------------------------------------------------

    def judge(self, run: Run[Context]) -> Judge:
        """Tells which conditions hold where this run rests, after the step that it just took."""
        values: dict[str, Value] = {"step": run.step_count, "phase": run.phase.name}
        return lambda condition: condition.holds(values.get)

    def words(self, step: Step) -> str:
        """What came of a step."""
        return ""

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
        """Go on until it is enough, or what `run_on` stops at; says why it stopped, "" if it was enough."""
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
            if self.run.status.ended:
                raise DebuggerError(f"the run has ended ({self.run.status}): go back to go on from there")
            self.run.until(stop)
        except PhaseError as error:
            self.branch.error = f"{type(error.__cause__).__name__}: {error.__cause__}"
            return f"failed in {error.phase}: {self.branch.error}"
        finally:
            self.pausing = False
        return str(self.run.status) if self.run.status.ended else reason

    def back(self, count: int = 1) -> None:
        """Go back so many steps."""
        self.goto(self.run.step_count - positive(count))

    def goto(self, number: int) -> None:
        """Rest where the run rested after so many steps, back or ahead in what is recorded."""
        if not 0 <= number <= self.run.recorded_steps:
            where = "the start" if number < 0 else "the last recorded step"
            raise DebuggerError(f"expected a step from 0 to {self.run.recorded_steps}, but {number} lies past {where}")
        self.run.goto(number)

    def break_at(self, kind: str, target: str) -> Breakpoint:
        """Set a breakpoint: kind "phase", "guard" or "if"; raises DebuggerError or ConditionError."""
        return self.breakpoints.add(self.run.machine, kind, target)

    # --- several runs -------------------------------------------------------------------------------------------

    def open(self, run: Run[Context], origin: str) -> Branch[Context]:
        """Hold another run, and show it."""
        return self.branches.open(run, origin)

    def fork(self, at: int | None = None) -> Branch[Context]:
        """Open a second run with the same past, and switch to it."""
        self.refuse_record("fork")
        number, place = self.branch.number, self.run.step_count if at is None else at
        return self.open(self.run.fork(at), f"fork of {number} at step {place}")

    def save(self, path: Path) -> None:
        """Write a snapshot; never over a file that this session did not write."""
        self.refuse_record("save")
        path = path.expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise DebuggerError(f"{path} exists already; choose another name")
        if self.run.status.ended:
            raise DebuggerError(f"the run has ended ({self.run.status}): go back a step to save it")
        self.run.snapshot(path)
        self._saved.add(path.resolve())

    def refuse_record(self, what: str) -> None:
        """Raise DebuggerError where there is only a record."""
        if self.record is not None:
            raise DebuggerError(
                f"a record has no model, so one cannot {what}; phasewalk replay --mode fork goes on live"
            )

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
        return self.branch.error if self.run.status == "failed" else ""

    def where(self) -> str:
        """One line that says where the run rests."""
        run = self.run
        return (
            f"run {self.branch.number}  {self.status}  at {run.phase.name}  "
            f"step {run.step_count} of {run.recorded_steps}"
        )

    def happenings(self) -> list[tuple[int, str]]:
        """The signals and edits so far, each with the number of the step before which it took effect."""
        return [(event.number, f"{event.kind} {event.name}") for event in self.run.events]

    def moments(self, first: int, last: int) -> Iterator[Moment]:
        """Steps on the timeline, those ahead of the place where it rests included."""
        return moments(self.run, first, last, self.words)


def positive(count: int) -> int:
    """A count that makes sense; raises DebuggerError."""
    if count < 1:
        raise DebuggerError(f"expected a count of at least 1, not {count}")
    return count
