"""A recorded run in the debugger: played to its end once, then walked back and forth without a model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phases import logits_digest
from phases.context import Generation
from phases.debugger.errors import DebuggerError
from phases.replay import played_run
from statemachine import Journal, JournalError, Machine, Run
from statemachine.record.exact import shown
from statemachine.record.records import ErrorRecord, StepRecord
from statemachine.record.replay import play

DIGESTED = ("prefill", "decode")  # phases that leave logits behind


class Recording:
    """A journal that has been played.

    Parameters
    ----------
    path
        The journal.
    machine
        The one that it was recorded with.

    Attributes
    ----------
    run
        Rests at the end of what could be played; goes anywhere.
    notice
        What is to be known about how the record ends; "" if it ends well.

    Raises
    ------
    JournalError
        When the journal is damaged or holds no generation.
    """

    def __init__(self, path: Path, machine: Machine[Generation]) -> None:
        self.journal = Journal.open(path)
        self._machine = machine
        self._digests: dict[int, Any] = {}
        self.notice = ""
        self._scan()
        self.run = self._ready()
        if divergence := play(self.journal, self.run):
            self.notice = divergence.report().splitlines()[0].replace("replay diverged", "cannot be played on")
        self._events = self.run.events

    def _scan(self) -> None:
        steps = 0
        for record in self.journal.timeline():
            if isinstance(record, StepRecord):
                steps = record.n + 1
                if record.d is not None and record.p in DIGESTED:
                    self._digests[record.n] = self._checked(record)
            elif isinstance(record, ErrorRecord):
                self.notice = f"the recorded run failed in {record.p}: {record.exception}: {record.message}"
        if self.journal.torn:
            self.notice = f"the last line of {self.journal.path} was never finished; {steps} steps are whole"

    def _checked(self, record: StepRecord) -> Any:
        """The digest of a step, which the record of any machine could have made up."""
        try:
            logits_digest.read(record.d)
        except ValueError as error:
            raise JournalError(
                f"{self.journal.path}: step {record.n} has no digest of logits: {shown(str(error))}"
            ) from error
        return record.d

    def _ready(self) -> Run[Generation]:
        ready = played_run(self.journal, self._machine)
        return Run(ready.machine, ready.context, run_id=ready.id, request=ready.request, keep=True)

    def digest(self, run: Run[Generation]) -> Any:
        """The digest of the logits that stood in the buffers where the run rests; None where there is none."""
        for step in reversed(list(run.steps(max(0, run.step_count - 4)))):
            if step.phase in DIGESTED:
                return self._digests.get(step.number)
        return None

    def output_text(self, row: int) -> str:
        """A row's whole output text, where the record tells it."""
        texts = self.run.context.output_texts
        for step in self.run.steps(max(0, self.run.recorded_steps - 3), future=True):
            if step.phase == "detokenize" and step.outcome:
                texts = step.outcome
        return texts[row] if texts else ""

    @property
    def at_end(self) -> bool:
        return self.run.step_count == self.run.recorded_steps

    @property
    def end(self) -> str:
        """How the record ends, in words."""
        status = f" ({self.run.status})" if self.run.status.ended else ""
        return f"the end of the record{status}"

    def advance(self, stop: Callable[[Run[Generation]], bool]) -> None:
        """Walk on to the first place where `stop` says so, or to the end of the record."""
        if self.at_end:
            raise DebuggerError(f"{self.end}: go back to see it again")
        for walked in self._walk():
            if walked.step_count > self.run.step_count and stop(walked):
                self.run.goto(walked.step_count)
                return
        self.run.goto(self.run.recorded_steps)

    def _walk(self) -> Iterator[Run[Generation]]:
        """A run of its own that goes through the record from its start, resting after each step."""
        run, events = self._ready(), list(self._events)
        for step in self.run.steps(future=True):
            while events and events[0].number <= step.number:
                event = events.pop(0)
                if event.kind == "signal":
                    run.signal_as_recorded(event.name, event.outcome, live=False)
                elif event.kind == "edit":
                    run.edit_as_recorded(event.name, event.outcome, live=False)
            run.take(step.raised or step.outcome, elapsed_ns=step.elapsed_ns)
            yield run
