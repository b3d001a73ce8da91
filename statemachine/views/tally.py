"""Counts what a recorded run did: visits and time of each phase, how often each transition and signal was taken."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from statemachine.views.chart import Chart, SignalArrow

if TYPE_CHECKING:
    from statemachine.record.journal import Journal
    from statemachine.record.records import BodyRecord


@dataclass(slots=True)
class PhaseTally:
    """Visits of one phase. Times are kept to three digits, so that memory does not grow with the journal."""

    visits: int = 0
    total_ns: int = 0
    times: Counter[int] = field(default_factory=Counter, repr=False)  # rounded ns: how often

    def add(self, elapsed_ns: int) -> None:
        """Count one visit."""
        self.visits += 1
        self.total_ns += elapsed_ns
        unit = 10 ** max(0, len(str(elapsed_ns)) - 3)
        self.times[round(elapsed_ns / unit) * unit] += 1

    def quantile_ns(self, part: float) -> int:
        """The time that this part of the visits does not exceed: 0.5 is the median."""
        passed, wanted = 0, part * self.visits
        for time in sorted(self.times):
            passed += self.times[time]
            if passed >= wanted:
                return time
        return 0


@dataclass(slots=True)
class CaughtTally:
    """How often a phase raised exceptions of one class, for which the table has a way, and what the last one said."""

    count: int = 0
    message: str = ""


@dataclass(slots=True)
class Tally:
    """What a run did, in numbers; only what counts in the end: steps that it went back from are left out.

    Attributes
    ----------
    transitions
        How often each was taken, by its number.
    signals
        How often each was taken, and from where to where.
    caught
        What was raised and had a way, by phase and class.
    refused
        How often each, by its name, was sent and had no effect.
    failed
        The phase that the run failed in, if it did.
    status
        How the run ended; None if the record does not say (it was paused, or killed).
    """

    phases: dict[str, PhaseTally]
    transitions: Counter[int] = field(default_factory=Counter)
    signals: Counter[SignalArrow] = field(default_factory=Counter)
    caught: dict[tuple[str, str], CaughtTally] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    failed: str | None = None
    status: str | None = None
    steps: int = 0

    @classmethod
    def of(cls, journal: "Journal") -> "Tally":
        """Count a journal, streaming it; raises JournalError where it is damaged."""
        tally = cls({name: PhaseTally() for name in journal.header.machine.phases})
        for _ in tally.watch(journal.timeline(), Chart.of_record(journal.header.machine)):
            pass
        return tally

    def watch(self, records: "Iterator[BodyRecord]", chart: Chart) -> "Iterator[BodyRecord]":
        """Pass the records of a timeline on, and count each."""
        from statemachine.record.records import EndRecord, ErrorRecord, RefusedRecord, SignalRecord, StepRecord

        here = chart.start  # where it rests
        ways = {(signal.name, signal.source): signal for signal in chart.signals}
        for record in records:
            if isinstance(record, StepRecord):
                self.steps += 1
                self.phases[record.p].add(record.t)
                self.transitions[record.e] += 1
                if record.x:
                    caught = self.caught.setdefault((record.p, record.x.exception), CaughtTally())
                    caught.count, caught.message = caught.count + 1, record.x.message
                here = chart.arrows[record.e].target
            elif isinstance(record, SignalRecord):
                way = ways.get((record.name, here)) or ways.get((record.name, None))
                taken = way._replace(source=here) if way else SignalArrow(record.name, here, here)
                self.signals[taken] += 1
                here = taken.target
            elif isinstance(record, RefusedRecord):
                self.refused[record.name] += 1
            elif isinstance(record, ErrorRecord):
                self.failed = record.p
            elif isinstance(record, EndRecord):
                self.status = record.status
            yield record

    @property
    def total_ns(self) -> int:
        """All steps together."""
        return sum(phase.total_ns for phase in self.phases.values())

    def shares(self) -> dict[str, float]:
        """Each phase's part of all the time."""
        total = self.total_ns or 1
        shares: dict[str, float] = defaultdict(float)
        shares.update({name: phase.total_ns / total for name, phase in self.phases.items()})
        return shares


def duration(ns: float) -> str:
    """A time to three digits, in the unit that suits it: 640 ns, 1.25 µs, 12.5 ms, 3.10 s."""
    unit, value = "ns", float(ns)
    for larger in ("µs", "ms", "s"):
        if value < 999.5:
            break
        unit, value = larger, value / 1e3
    text = f"{value:.0f}" if value >= 999.5 or value == 0 else f"{value:#.3g}".rstrip(".")
    return f"{text} {unit}"
