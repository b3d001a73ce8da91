"""A run walks along a record, step by step, to the first place where it behaves otherwise."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from statemachine.definition.phase import Status, Wait
from statemachine.definition.raised import Raised
from statemachine.definition.variable import values_at
from statemachine.errors import GuardError, IllegalMove, JournalError, PhaseError
from statemachine.execution import host_state
from statemachine.execution.run import Run
from statemachine.execution.timeline import Step
from statemachine.record import exact
from statemachine.record.divergence import MISSING, Divergence, differences, plain_text
from statemachine.record.header import header_of
from statemachine.record.journal import Journal
from statemachine.record.records import (
    BodyRecord,
    EditRecord,
    EndRecord,
    ErrorRecord,
    PauseRecord,
    RaisedRecord,
    RefusedRecord,
    SignalRecord,
    StepRecord,
)
from statemachine.record.translation import Translation

Watch = Callable[[int], None]

COMMON = 5  # how many of the last steps in common a report shows
MOST_CHANGES = 20  # how many fields that differ are told
OUTSIDE = ("KeyboardInterrupt", "SystemExit", "GeneratorExit", "CancelledError")  # no phase's own failures


class Walk:
    """Walks a run along a record, and compares names with names: numbers in a table change when the table grows."""

    def __init__(
        self, journal: Journal, run: Run[Any], *, live: bool, until: int | None = None, watch: Watch | None = None
    ) -> None:
        self._journal, self._run, self._live, self._until, self._watch = journal, run, live, until, watch
        with _named(journal, 1):
            self._words = Translation(journal.header, run.machine)
        self._common: deque[Step] = deque(maxlen=COMMON)
        self._line = 1
        self.header = header_of(run)
        self.steps = 0
        self._failed = False  # in a phase, which would fail again
        self.ended: str | None = None
        self.paused_at: str | None = None
        self.interrupted: str | None = None
        self.believed = False  # the run began with the state that the record says
        self.pending: list[tuple[str, Any]] = []  # sent, and not yet taken, with what each carries
        self._paused_line = 1  # of the record that says so
        run.digest_every = journal.header.digest_every

    def walk(self) -> Divergence | None:
        """Follow the record as far as the run does."""
        divergence = self.begin() if self._begins_late() else self._origin()
        records = self._journal.numbered_timeline()
        while divergence is None and (numbered := next(records, None)):
            self._line, record = numbered
            if self._until is not None and record.n >= self._until and not isinstance(record, EditRecord):
                return None
            with _named(self._journal, self._line):
                translated = self._words.record(record)
            divergence = self._follow(translated)
        return divergence or self._unknown_pending()

    def begin(self) -> Divergence | None:
        """Begin where the record does, with its fields, which come from a snapshot without a past."""
        header, run, phase = self._journal.header, self._run, self._words.phase_at_start
        if not exact.same(header.request, exact.plain(run.request)):
            return self._diverged(header.first, phase, "request", header.request, exact.plain(run.request))
        if phase not in run.machine.phases:
            return self._diverged(header.first, phase, "phase", phase, f"none of {', '.join(run.machine.phases)}")
        if divergence := self._changed(header.began):
            return divergence
        with _named(self._journal, 1):
            held = self._words.fields(header.origin or {})
            if odd := {*held}.symmetric_difference(map(str, host_state.save(run.context))):
                raise JournalError(
                    f"{exact.shown(sorted(odd))} are fields of the record or of the context, not of both"
                )
            fields = exact.typed_fields(run.context, held)
        run.begin_at(header.first, phase, fields, digestible=header.digestible)
        run.began = header.began
        self.believed = True
        if self._live:
            run.resources.rebuild(run.context)
        self.header = header_of(run)
        return None

    def _begins_late(self) -> bool:
        """Whether the record has no past, and the run has not been brought to where it begins."""
        header, run = self._journal.header, self._run
        late = header.first > 0 or header.phase or header.began is not None
        return bool(late) and run.status is Status.READY and not run.events

    def _unknown_pending(self) -> Divergence | None:
        """A signal that was pending at the record's end, and is none of the machine any more."""
        run, known = self._run, {signal.name for signal in self._run.machine.signals}
        if run.status.over and self.ended:
            self.pending.clear()  # what was not taken was refused, and has a record of its own
        if (odd := [name for name, _ in self.pending if name not in known]) and not run.status.ended:
            return self._diverged(run.step_count, run.phase.name, "signal", odd[0], MISSING)
        with _named(self._journal, self._paused_line):
            self.pending = [
                (name, exact.typed(payload, run.machine.signals_named(name)[0]))
                for name, payload in self.pending if name in known
            ]  # fmt: skip
        return None

    def _arrived(self, record: SignalRecord | RefusedRecord) -> None:
        """A signal waits no more."""
        for place, (name, payload) in enumerate(self.pending):
            if name == record.name and exact.same(payload, record.o):
                del self.pending[place]
                return

    def _follow(self, record: BodyRecord) -> Divergence | None:
        if isinstance(record, StepRecord):
            self.paused_at = None
            return self._step(record)
        if isinstance(record, SignalRecord | RefusedRecord):
            self._arrived(record)
            return self._signal(record)
        if isinstance(record, EditRecord):
            return self._edit(record)
        here = self._run.phase.name
        if isinstance(record, PauseRecord):
            self.paused_at, self.pending, self._paused_line = record.p or here, record.sent, self._line
            return None if record.p in ("", here) else self._diverged(record.n, record.p, "phase", record.p, here)
        if isinstance(record, ErrorRecord):
            return self._error(record)
        if isinstance(record, EndRecord):
            return self._end(record)
        return None

    def _end(self, record: EndRecord) -> Divergence | None:
        status = str(self._run.status)
        if record.status != "failed":
            self.ended = record.status
            return None if status == record.status else self._diverged(
                record.n, self._run.phase.name, "end", record.status, status
            )  # fmt: skip
        if self._failed:
            self.ended = record.status
        else:  # nothing in the run itself failed
            self.interrupted = self.interrupted or "an interrupt"
        return None

    def _take(self, record: StepRecord) -> Step:
        """Run the phase again, or take its outcome."""
        run = self._run
        if not self._live or isinstance(run.phase, Wait):  # an answer came from outside, and does again
            outcome = _raised(record.x) if record.x else self._typed(record)
            return run.take(outcome, elapsed_ns=record.t, digest=record.d)
        if self._journal.header.schema == 1 or not self._journal.header.digest_every:
            run.digest_every = int(record.d is not None)  # the header does not say at which steps one is due
        step = run.step()
        assert step is not None  # no signal is pending: each was taken where it was recorded
        return step

    def _error(self, record: ErrorRecord) -> Divergence | None:
        """Run the phase that failed again; an interrupt from outside is nothing that would come again."""
        here = self._run.phase.name
        if record.p != here or self._run.status.ended:
            return self._diverged(record.n, record.p, "phase", record.p, here)
        if record.outside or record.exception in OUTSIDE:
            self.interrupted = record.exception
            return None
        self._failed = True
        if not self._live:
            return None
        try:
            self._run.step()
            found = MISSING
        except PhaseError as error:
            found = type(error.__cause__).__name__
        if found == record.exception:
            return None
        return self._diverged(record.n, record.p, "error", f"{record.exception}: {record.message}", found)

    def _origin(self) -> Divergence | None:
        """Whether the run begins with the context, and at the phase, that the recorded one began with."""
        header, phase = self._journal.header, self._words.phase_at_start
        if divergence := self._changed(header.origin):
            return divergence
        if phase != self._run.phase.name or header.first != self._run.step_count:
            here = f"{self._run.phase.name}, step {self._run.step_count}"
            return self._diverged(header.first, phase, "phase", f"{phase}, step {header.first}", here)
        return None

    def _changed(self, recorded: Mapping[str, Any] | None) -> Divergence | None:
        """Whether the context, before anything ran, is the one that was recorded then."""
        if recorded is None:
            return None
        header, mine = self._journal.header, self.header.origin or {}
        with _named(self._journal, 1):
            recorded = self._words.fields(recorded)
        held = {*recorded, *mine} - {*header.opaque, *self.header.opaque}
        pairs = {name: (recorded.get(name, MISSING), mine.get(name, MISSING)) for name in held}
        odd = sorted(name for name, (old, new) in pairs.items() if not exact.same(old, new))
        if not odd:
            return None
        old, new = ({name: pairs[name][side] for name in odd} for side in (0, 1))
        words = {name: [exact.shown(plain_text(side)) for side in pairs[name]] for name in odd[:MOST_CHANGES]}
        changes = [f"context: {exact.shown(name)} {before} -> {after}" for name, (before, after) in words.items()]
        return self._diverged(header.first, self._words.phase_at_start, "context", old, new, causes=tuple(changes))

    def _step(self, record: StepRecord) -> Divergence | None:
        run = self._run
        if run.status.ended or run.phase.name != record.p:
            replayed = str(run.status) if run.status.ended else run.phase.name
            return self._diverged(record.n, record.p, "phase", record.p, replayed)
        way = self._words.machine.transitions[record.e]
        if run.waits_for_signals:
            return self._diverged(record.n, record.p, "target", str(way), "none: it waits for signals alone")
        raised = None if record.x is None else _raised(record.x)
        recorded_error = MISSING if raised is None else str(raised)
        if raised and raised.way not in (ways := run.timeline.program.ways[run.timeline.program.index_of(record.p)]):
            known = f"no way on {exact.shown(raised.way)}; there are: {', '.join(ways) or 'none'}"
            return self._diverged(record.n, record.p, "error", recorded_error, known)
        try:
            taken = self._take(record)
        except PhaseError as error:
            found = f"{type(error.__cause__).__name__}: {error.__cause__}"
            return self._diverged(record.n, record.p, "error", recorded_error, found)
        if taken.raised != raised:
            found = MISSING if taken.raised is None else str(taken.raised)
            return self._diverged(record.n, record.p, "error", recorded_error, found)
        if self._live and not exact.same(record.o, outcome := _plain(taken.outcome)):
            return self._diverged(record.n, record.p, "outcome", record.o, outcome)
        if divergence := self._digest(record):
            return divergence
        recorded = values_at(record.g, self._words.machine.variables(record.p))
        both = [name for name in recorded if name in taken.guards]
        old, new = ({name: values[name] for name in both} for values in (recorded, dict(taken.guards)))
        if old != new:
            return self._diverged(record.n, record.p, "guards", old, new)
        if way.target != taken.target:
            return self._diverged(record.n, record.p, "target", str(way), f"{taken.phase} -> {taken.target}")
        self._common.append(taken)
        self.steps += 1
        if self._watch:
            self._watch(record.n + 1)
        return None

    def _digest(self, record: StepRecord) -> Divergence | None:
        found = self._run.timeline.digests.get(record.n)
        found = _plain(found)
        if exact.same(record.d, found):
            return None
        phase = self._run.machine.phases[record.p]
        try:
            detail = phase.explain(record.d, found) if None not in (record.d, found) else {}
        except Exception as error:
            odd = exact.shown(repr(error))
            raise self._journal.error(self._line, f"has no digest of phase {record.p!r}: {odd}") from error
        return self._diverged(record.n, record.p, "digest", record.d, found, **detail)

    def _signal(self, record: SignalRecord | RefusedRecord) -> Divergence | None:
        run = self._run
        try:
            signal = run.machine.signals_named(record.name)[0]
        except ValueError as unknown:
            return self._diverged(record.n, run.phase.name, "signal", record.name, str(unknown))
        with _named(self._journal, self._line):
            payload = exact.typed(record.o, signal)
        try:
            if isinstance(record, RefusedRecord):
                run.refuse_as_recorded(record.name, payload, record.why)
            else:
                run.signal_as_recorded(record.name, payload, live=self._live)
        except (IllegalMove, GuardError) as otherwise:
            refused = f", refused: {plain_text(record.why)}" if isinstance(record, RefusedRecord) else ""
            return self._diverged(record.n, run.phase.name, "signal", record.name + refused, str(otherwise))
        except Exception as error:
            raise self._unentered("signal", record, error) from error
        return None

    def _unentered(
        self, kind: str, record: SignalRecord | RefusedRecord | EditRecord, error: Exception
    ) -> JournalError:
        return self._journal.error(
            self._line,
            f"{kind} {record.name!r} cannot enter {exact.shown(record.o)} here: {exact.shown(repr(error))}",
        )

    def _edit(self, record: EditRecord) -> Divergence | None:
        run = self._run
        try:
            edit = run.machine.edit(record.name)
        except ValueError as unknown:
            return self._diverged(record.n, run.phase.name, "edit", record.name, str(unknown))
        with _named(self._journal, self._line):
            outcome = exact.typed(record.o, edit)
        try:
            run.edit_as_recorded(record.name, outcome, live=self._live)
        except IllegalMove as otherwise:
            return self._diverged(record.n, run.phase.name, "edit", record.name, str(otherwise))
        except Exception as error:
            raise self._unentered("edit", record, error) from error
        return None

    def _typed(self, record: StepRecord) -> Any:
        with _named(self._journal, self._line):
            return exact.typed(record.o, self._run.phase)

    def _diverged(
        self,
        n: int,
        phase: str,
        field: str,
        recorded: Any,
        replayed: Any,
        *,
        causes: tuple[str, ...] = (),
        **detail: Any,
    ) -> Divergence:
        words = tuple(
            f"{step.number}: {step.phase} {plain_text(_found(step))}".rstrip() for step in self._common
        )  # fmt: skip
        return Divergence(
            n, phase, field, recorded, replayed, causes + differences(self._journal.header, self.header), words, detail
        )


def _raised(record: RaisedRecord) -> Raised:
    return Raised(record.way, record.exception, record.message)


@contextmanager
def _named(journal: Journal, line: int) -> Iterator[None]:
    """Name file and line in whatever complaint a JournalError makes."""
    try:
        yield
    except JournalError as error:
        raise journal.error(line, str(error)) from error


def _found(step: Step) -> Any:
    """What came of a step, as a report shows it."""
    return str(step.raised) if step.raised else "" if step.outcome is None else _plain(step.outcome)


def _plain(value: Any) -> Any:
    """A value as JSON would hold it; in words, if it cannot."""
    try:
        return exact.plain(value)
    except (TypeError, ValueError, RecursionError, OverflowError):
        return exact.shown(value)
