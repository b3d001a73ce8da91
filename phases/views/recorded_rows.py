"""Walks a recorded generation row by row: who took part in each step, its tokens, candidates and cache lengths."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from phases import logits_digest
from phases.check_stop import Stopped
from phases.constrain import constrained
from phases.context import Generation
from phases.recorded import capacity_of, request_of
from phases.token_ids import Tokens, tokens_of
from statemachine import Edit, Journal, JournalError, Machine, Signal
from statemachine.record.exact import shown, typed
from statemachine.record.records import EditRecord, SignalRecord, StepRecord


@dataclass(frozen=True, slots=True)
class Token:
    """A token that entered a row's output."""

    row: int
    id: int
    step: int
    forced: bool  # somebody's edit put it there
    candidates: tuple[tuple[int, float], ...] = ()  # ids and probabilities of the likeliest, if a digest tells


@dataclass(frozen=True, slots=True)
class Walked:
    """One step: the rows that took part, and the tokens that came of it."""

    rows: tuple[int, ...]
    tokens: tuple[Token, ...] = ()


class RecordedRows:
    """Folds the outcomes of a generation's journal, record by record, with no engine and no tokenizer.

    Memory is that of one generation, however long the journal is: steps are not kept. Phases that `machine` does not
    have are let pass, as they belong to no row.

    Raises
    ------
    JournalError
        When the journal records no generation.
    """

    def __init__(self, journal: Journal, machine: Machine[Generation]) -> None:
        request, capacity = request_of(journal), capacity_of(journal)
        self._path = journal.path
        machine = constrained(machine, request)
        self._phases = machine.phases
        self._events: dict[str, Signal[Generation, Any] | Edit[Generation, Any]] = {
            **{signal.name: signal for signal in machine.signals},
            **{edit.name: edit for edit in machine.edits},
        }
        self.context = Generation(request, tuple(range(len(request.requests))), capacity)
        self._coming: dict[int, Any] = {}  # by row, the digest of the logits that its next token will be drawn from
        self._drawn_from: dict[int, Any] = {}  # ... that the token just drawn was drawn from

    def step(self, record: StepRecord) -> Walked:
        """Take a step; raises JournalError if it does not fit a generation, or what went before."""
        with self._naming(record):
            return self._walked(record)

    def _walked(self, record: StepRecord) -> Walked:
        phase, context = self._phases.get(record.p), self.context
        if phase is None:
            return Walked(())
        rows, lengths = self._rows(record.p), list(context.cached)
        if record.p == "sample":
            self._drawn_from, self._coming = self._coming, {}
        outcome = typed(record.o, phase)
        is_token = record.p == "check_stop" and outcome is not None
        tokens = self._tokens(record, rows, outcome) if is_token else ()
        if outcome is not None:
            phase.apply(context, outcome)
        if record.p == "prefill":
            rows = tuple(row for row in rows if context.cached[row] != lengths[row])
        if record.d is not None:
            self._coming |= {row.row: tuple(row.probabilities) for row in logits_digest.read(record.d)}
        return Walked(rows, tokens)

    def event(self, record: EditRecord | SignalRecord) -> None:
        """Take an edit or a signal; one that the machine does not know is let pass."""
        if event := self._events.get(record.name):
            with self._naming(record):
                event.apply(self.context, typed(record.o, event))

    @contextmanager
    def _naming(self, record: StepRecord | EditRecord | SignalRecord) -> Iterator[None]:
        """Tell of what does not fit a generation, or what went before, as an error that names file and step."""
        name = record.p if isinstance(record, StepRecord) else record.name
        try:
            yield
        except Exception as error:
            raise JournalError(
                f"{self._path}: what step {record.n} ({shown(name)}) came to does not fit what went before: "
                f"{shown(str(error))}"
            ) from error

    def _rows(self, phase: str) -> tuple[int, ...]:
        """The rows that take part in a phase that is about to run."""
        context = self.context
        if phase in ("sample", "check_stop"):
            return context.live
        if phase == "decode":
            return tuple(context.unfinished())
        return tuple(range(len(context.slots)))

    def _tokens(self, record: StepRecord, rows: tuple[int, ...], outcome: Tokens | Stopped) -> tuple[Token, ...]:
        context, failed = self.context, dict(outcome.failed) if isinstance(outcome, Stopped) else {}
        return tuple(
            Token(
                row, token, record.n, len(context.output_ids[row]) in context.forced[row],
                self._drawn_from.get(row, ()),
            )
            for row, token in zip((row for row in rows if row not in failed), tokens_of(outcome), strict=False)
        )  # fmt: skip
