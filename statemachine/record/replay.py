"""Replay: walk a journal again by its outcomes alone, or run it again and say where it first differs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from statemachine.execution.run import Run
from statemachine.record.divergence import Divergence, differences
from statemachine.record.journal import Journal
from statemachine.record.records import GotoRecord, StepRecord
from statemachine.record.walk import Walk

Watch = Callable[[int], None]


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
    differences
        What differs between the record's header and that of this replay, and can change a bit; and what of the record
        had to be believed.
    first
        The number of the first step: 0, unless the run was restored without its past.
    interrupted
        What cut the recorded run short from outside (a KeyboardInterrupt, say), if something did: it has not ended.
    """

    divergence: Divergence | None
    steps: int
    ended: str | None
    paused_at: str | None = None
    passed_over: int = 0
    differences: tuple[str, ...] = ()
    first: int = 0
    interrupted: str | None = None

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
    divergence, pending = follow(journal, run, until=until, watch=watch)
    if pending:
        run.wait_as_recorded(pending)
    return divergence


def follow(
    journal: Journal, run: Run[Any], *, until: int | None = None, watch: Watch | None = None
) -> tuple[Divergence | None, list[tuple[str, Any]]]:
    """`play`, but for the signals that are pending there, each with what it carries: they are given, and not sent."""
    walk = Walk(journal, run, live=False, until=until, watch=watch)
    divergence = walk.walk()
    if not run.status.ended:
        run.rest()
    return divergence, walk.pending if divergence is None else []


def begin_where_recorded(journal: Journal, run: Run[Any]) -> Divergence | None:
    """Let a ready run begin with the state that the header of a record without a past holds.

    Raises
    ------
    JournalError
        When the header's fields are none of this run's context.
    """
    return Walk(journal, run, live=False).begin()


def verify(journal: Journal, run: Run[Any], *, watch: Watch | None = None) -> Verdict:
    """Run it again with a ready run and compare every compared field of every step.

    A journal that was cut short (by a kill, say) is compared as far as it goes, and the verdict says so.

    Raises
    ------
    JournalError
        When the journal is damaged, or holds what no version of this machine recorded; names file and line.
    """
    walk = Walk(journal, run, live=True, watch=watch)
    divergence = walk.walk()
    told = (*differences(journal.header, walk.header), *_not_compared(journal, walk))
    return Verdict(
        divergence, walk.steps, walk.ended, walk.paused_at if walk.ended is None else None, _passed_over(journal), told,
        journal.header.first, walk.interrupted,
    )  # fmt: skip


def _not_compared(journal: Journal, walk: Walk) -> Iterator[str]:
    """What of a record had to be believed."""
    if journal.header.schema == 1:
        yield "the record has no checksums: schema 1 had none"
    elif not journal.chained:
        yield "the record's checksums were not compared"
    if walk.believed:
        yield f"the record begins at step {journal.header.first}: the state there was taken from it, and not compared"


def _passed_over(journal: Journal) -> int:
    """How many of the recorded steps are not part of the timeline."""
    recorded = gone = 0
    for record in journal.records():
        recorded += isinstance(record, StepRecord)
        gone += isinstance(record, GotoRecord)
    return recorded - sum(isinstance(record, StepRecord) for record in journal.timeline()) if gone else 0
