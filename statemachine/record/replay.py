"""Replay: walk a journal again by its outcomes alone, or run it again and say where it first differs."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from statemachine.errors import IllegalMove, JournalError, PhaseError
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
    GotoRecord,
    PauseRecord,
    SignalRecord,
    StepRecord,
)
from statemachine.record.translation import Translation

Watch = Callable[[int], None]

COMMON = 5  # how many of the last steps in common a report shows


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of running a journal again.

    Attributes
    ----------
    divergence
        The first difference; None if there is none as far as the record goes.
    steps
        How many steps were compared, and found the same.
    ended
        How the recorded run ended; None if the record does not reach its end: the run was paused, or cut short.
    paused_at
        The phase at which a run that has not ended rests, if the record says that it does.
    passed_over
        How many recorded steps the run went back from: they do not count in the end, and were not compared.
    first
        The number of the first step: 0, unless the run was restored without its past.
    differences
        What differs between the record's header and that of this replay, and can change a bit.
    """

    divergence: Divergence | None
    steps: int
    ended: str | None
    paused_at: str | None = None
    passed_over: int = 0
    differences: tuple[str, ...] = ()
    first: int = 0

    @property
    def ends_at(self) -> int:
        """The step before which the record ends, as far as it was followed."""
        return self.first + self.steps

    @property
    def complete(self) -> bool:
        """Whether the record reaches the run's end."""
        return self.ended is not None

    @property
    def verified(self) -> bool:
        """Whether the whole run came to the same again."""
        return self.complete and self.divergence is None


def play(journal: Journal, run: Run[Any], *, until: int | None = None, watch: Watch | None = None) -> Divergence | None:
    """Move a ready run by the recorded outcomes alone: no phase runs, so no engine, model or file is needed.

    Parameters
    ----------
    until
        Stop before the step of this number, with the run resting there.
    watch
        Called with the number of steps done, after each.

    Returns
    -------
    Divergence or None
        Where the machine behaves otherwise than the record says; the run rests there.

    Raises
    ------
    JournalError
        When the journal is damaged, or holds what no version of this machine recorded; names file and line.
    """
    walk = _Walk(journal, run, live=False, until=until, watch=watch)
    divergence = walk.walk()
    if not run.status.ended:
        run.rest()
        for name in walk.pending if divergence is None else ():
            run.signal(name, wait=True)
    return divergence


def verify(journal: Journal, run: Run[Any], *, watch: Watch | None = None) -> Verdict:
    """Run it again with a ready run and compare every compared field of every step.

    A journal that was cut short (by a kill, say) is compared as far as it goes, and the verdict says so.

    Raises
    ------
    JournalError
        When the journal is damaged, or holds what no version of this machine recorded; names file and line.
    """
    walk = _Walk(journal, run, live=True, watch=watch)
    divergence = walk.walk()
    return Verdict(
        divergence, walk.steps, walk.ended, walk.paused_at if walk.ended is None else None, _passed_over(journal),
        differences(journal.header, walk.header), journal.header.first,
    )  # fmt: skip


def _passed_over(journal: Journal) -> int:
    """How many of the recorded steps are not part of the timeline."""
    recorded = gone = 0
    for record in journal.records():
        recorded += isinstance(record, StepRecord)
        gone += isinstance(record, GotoRecord)
    return recorded - sum(isinstance(record, StepRecord) for record in journal.timeline()) if gone else 0


class _Walk:
    """Walks a run along a record, and compares names with names: numbers in a table change when the table grows."""

    def __init__(
        self, journal: Journal, run: Run[Any], *, live: bool, until: int | None = None, watch: Watch | None = None
    ) -> None:
        self._journal, self._run, self._live, self._until, self._watch = journal, run, live, until, watch
        self._words = Translation(journal.header, run.machine)
        self._common: deque[Step] = deque(maxlen=COMMON)
        self._line = 1
        self.header = header_of(run)
        self.steps = 0
        self.ended: str | None = None
        self.paused_at: str | None = None
        self.pending: tuple[str, ...] = ()
        run.digest_every = journal.header.digest_every

    def walk(self) -> Divergence | None:
        """Follow the record as far as the run does."""
        divergence = self._origin()
        records = self._journal.numbered_timeline()
        while divergence is None and (numbered := next(records, None)):
            self._line, record = numbered
            if self._until is not None and record.n >= self._until and not isinstance(record, EditRecord):
                return None
            divergence = self._follow(self._words.record(record))
        return divergence

    def _follow(self, record: BodyRecord) -> Divergence | None:
        if isinstance(record, StepRecord):
            self.paused_at, self.pending = None, ()
            return self._step(record)
        if isinstance(record, SignalRecord):
            return self._signal(record)
        if isinstance(record, EditRecord):
            return self._edit(record)
        here = self._run.phase.name
        if isinstance(record, PauseRecord):
            self.paused_at, self.pending = record.p or here, record.pending
            return None if record.p in ("", here) else self._diverged(record.n, record.p, "phase", record.p, here)
        if isinstance(record, ErrorRecord):
            return self._error(record)
        if isinstance(record, EndRecord):
            self.ended, status = record.status, str(self._run.status)
            if status != record.status and record.status != "failed":
                return self._diverged(record.n, here, "end", record.status, status)
        return None

    def _take(self, record: StepRecord) -> Step:
        """Run the phase again, or take its outcome."""
        run = self._run
        if not self._live:
            return run.take(self._typed(record), elapsed_ns=record.t, digest=record.d)
        if self._journal.header.schema == 1 or not self._journal.header.digest_every:
            run.digest_every = int(record.d is not None)  # the header does not say at which steps one is due
        step = run.step()
        assert step is not None  # no signal is pending: each was taken where it was recorded
        return step

    def _error(self, record: ErrorRecord) -> Divergence | None:
        """Run the phase that failed again; an interrupt from outside is nothing that would come again."""
        if record.outside or not self._live:
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
        header, mine = self._journal.header, self.header
        if header.origin is None:
            return None
        held = {*header.origin, *(mine.origin or {})} - {*header.opaque, *mine.opaque}
        pairs = {name: (header.origin.get(name, MISSING), (mine.origin or {}).get(name, MISSING)) for name in held}
        odd = sorted(name for name, (old, new) in pairs.items() if not exact.same(old, new))
        phase = self._words.phase_at_start
        if odd:
            old, new = ({name: pairs[name][side] for name in odd} for side in (0, 1))
            changes = [f"context: {name} {exact.shown(plain_text(old[name]))} -> {exact.shown(plain_text(new[name]))}"
                       for name in odd]  # fmt: skip
            return self._diverged(header.first, phase, "context", old, new, causes=tuple(changes))
        if phase != self._run.phase.name or header.first != self._run.step_count:
            here = f"{self._run.phase.name}, step {self._run.step_count}"
            return self._diverged(header.first, phase, "phase", f"{phase}, step {header.first}", here)
        return None

    def _step(self, record: StepRecord) -> Divergence | None:
        run = self._run
        if run.status.ended or run.phase.name != record.p:
            replayed = str(run.status) if run.status.ended else run.phase.name
            return self._diverged(record.n, record.p, "phase", record.p, replayed)
        try:
            taken = self._take(record)
        except PhaseError as error:
            found = f"{type(error.__cause__).__name__}: {error.__cause__}"
            return self._diverged(record.n, record.p, "error", MISSING, found)
        if self._live and not exact.same(record.o, outcome := exact.plain(taken.outcome)):
            return self._diverged(record.n, record.p, "outcome", record.o, outcome)
        if divergence := self._digest(record):
            return divergence
        names = self._words.machine.guards.get(record.p, ())
        recorded = {name: bool(record.g >> bit & 1) for bit, name in enumerate(names)}
        both = [name for name in recorded if name in taken.guards]
        old, new = ({name: values[name] for name in both} for values in (recorded, dict(taken.guards)))
        if old != new:
            return self._diverged(record.n, record.p, "guards", old, new)
        way = self._words.machine.transitions[record.e]
        if way.target != taken.target:
            return self._diverged(record.n, record.p, "target", str(way), f"{taken.phase} -> {taken.target}")
        self._common.append(taken)
        self.steps += 1
        if self._watch:
            self._watch(record.n + 1)
        return None

    def _digest(self, record: StepRecord) -> Divergence | None:
        found = self._run.timeline.digests.get(record.n)
        found = None if found is None else exact.plain(found)
        if exact.same(record.d, found):
            return None
        phase = self._run.machine.phases[record.p]
        try:
            detail = phase.explain(record.d, found) if None not in (record.d, found) else {}
        except Exception as error:
            raise self._journal.error(self._line, f"has no digest of phase {record.p!r}: {error!r}") from error
        return self._diverged(record.n, record.p, "digest", record.d, found, **detail)

    def _signal(self, record: SignalRecord) -> Divergence | None:
        try:
            self._run.signal(record.name)
        except (IllegalMove, ValueError) as refused:
            return self._diverged(record.n, self._run.phase.name, "signal", record.name, str(refused))
        return None

    def _edit(self, record: EditRecord) -> Divergence | None:
        run = self._run
        try:
            edit = run.machine.edit(record.name)
        except ValueError as unknown:
            return self._diverged(record.n, run.phase.name, "edit", record.name, str(unknown))
        try:
            run.edit_as_recorded(record.name, exact.typed(record.o, edit), live=self._live)
        except JournalError as error:
            raise self._journal.error(self._line, str(error)) from error
        except Exception as error:
            raise self._journal.error(
                self._line, f"edit {record.name!r} cannot enter {exact.shown(record.o)} here: {error!r}"
            ) from error
        return None

    def _typed(self, record: StepRecord) -> Any:
        try:
            return exact.typed(record.o, self._run.phase)
        except JournalError as error:
            raise self._journal.error(self._line, str(error)) from error

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
            f"{step.number}: {step.phase} {plain_text(exact.plain(step.outcome)) if step.outcome is not None else ''}"
            .rstrip() for step in self._common
        )  # fmt: skip
        return Divergence(
            n, phase, field, recorded, replayed, causes + differences(self._journal.header, self.header), words, detail
        )
