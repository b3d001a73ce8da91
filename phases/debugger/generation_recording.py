"""A recorded generation in the debugger: what its digests tell of the logits, and its text."""

from pathlib import Path
from typing import Any

from phases import logits_digest
from phases.context import Generation
from phases.debugger.recording import Recording
from phases.replay import played_run
from phases.views.token_text import TokenText
from statemachine import Journal, JournalError, Machine, Run
from statemachine.record.exact import shown
from statemachine.record.records import StepRecord

DIGESTED = ("prefill", "decode")  # phases that leave logits behind


class GenerationRecording(Recording[Generation]):
    """The journal of a generation that has been played.

    Parameters
    ----------
    path
        The journal.
    machine
        The one that it was recorded with.
    model
        The folder of the checkpoint whose tokenizer makes text of its tokens; unless given, what the journal names.

    Attributes
    ----------
    without_text
        Why tokens are shown by their ids; "" where there is a tokenizer.

    Raises
    ------
    JournalError
        When the journal is damaged or holds no generation.
    """

    def __init__(self, path: Path, machine: Machine[Generation], model: str | None = None) -> None:
        self._digests: dict[int, Any] = {}
        journal = Journal.open(path)
        ready = played_run(journal, machine)
        text = TokenText.of(journal, model)
        ready.context.tokenizer, self.without_text = text.tokenizer, text.note
        super().__init__(journal, ready)

    def see(self, record: StepRecord) -> None:
        """Keep the digest of a step, which the record of any machine could have made up."""
        if record.d is None or record.p not in DIGESTED:
            return
        try:
            logits_digest.read(record.d)
        except ValueError as error:
            raise JournalError(
                f"{self.journal.path}: step {record.n} has no digest of logits: {shown(str(error))}"
            ) from error
        self._digests[record.n] = record.d

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
