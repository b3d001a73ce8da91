"""A recorded run in the debugger: played to its end once, then walked back and forth without running a phase."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from phases.debugger.errors import DebuggerError
from statemachine import Journal, Run
from statemachine.record.records import ErrorRecord, StepRecord
from statemachine.record.replay import play

Context = TypeVar("Context")


class Recording(Generic[Context]):
    """A journal that has been played.

    Parameters
    ----------
    journal
        The record.
    run
        A ready run of the machine that made it, over a context as it was at its start, kept when it ends.

    Attributes
    ----------
    run
        Rests at the end of what could be played; goes anywhere.
    notice
        What is to be known about how the record ends; "" if it ends well.

    Raises
    ------
    JournalError
        When the journal is damaged.
    """

    def __init__(self, journal: Journal, run: Run[Context]) -> None:
        self.journal = journal
        self.run = run
        self.notice = ""
        self._scan()
        if divergence := play(journal, run):
            self.notice = divergence.report().splitlines()[0].replace("replay diverged", "cannot be played on")
        self._events = run.events

    def _scan(self) -> None:
        steps = 0
        for record in self.journal.timeline():
            if isinstance(record, StepRecord):
                steps = record.n + 1
                self.notice = ""
                self.see(record)
            elif isinstance(record, ErrorRecord):
                self.notice = f"the recorded run failed in {record.p}: {record.exception}: {record.message}"
        if self.journal.torn:
            self.notice = f"the last line of {self.journal.path} was never finished; {steps} steps are whole"

    def see(self, record: StepRecord) -> None:
        """Take from a step what a kind of machine shows of it."""

    @property
    def at_end(self) -> bool:
        return self.run.step_count == self.run.recorded_steps

    @property
    def end(self) -> str:
        """How the record ends, in words."""
        status = f" ({self.run.status})" if self.run.status.ended else ""
        return f"the end of the record{status}"

    def advance(self, stop: Callable[[Run[Any]], bool]) -> None:
        """Walk on to the first place where `stop` says so, or to the end of the record."""
        if self.at_end:
            raise DebuggerError(f"{self.end}: go back to see it again")
        for walked in self._walk():
            if stop(walked):
                self.run.goto(walked.step_count)
                return
        self.run.goto(self.run.recorded_steps)

    def _walk(self) -> Iterator[Run[Context]]:
        """A run of its own that goes on through the record from here, resting after each step."""
        here = self.run.step_count
        run, events = self.run.fork(), [event for event in self._events if event.number >= here]
        for step in self.run.steps(here, future=True):
            while events and events[0].number <= step.number:
                event = events.pop(0)
                if event.kind == "signal":
                    run.signal_as_recorded(event.name, event.outcome, live=False)
                elif event.kind == "edit":
                    run.edit_as_recorded(event.name, event.outcome, live=False)
            run.take(step.raised or step.outcome, elapsed_ns=step.elapsed_ns)
            yield run
