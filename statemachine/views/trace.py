"""Turns a journal into a trace in Chrome's event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

The format: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import msgspec

from statemachine.definition.variable import values_at
from statemachine.record.journal import Journal
from statemachine.record.records import (
    EditRecord,
    EndRecord,
    ErrorRecord,
    GotoRecord,
    PauseRecord,
    RefusedRecord,
    SignalRecord,
    StepRecord,
)
from statemachine.views.chart import Chart

PID = 1
MACHINE = 0  # the track of the machine itself
LONGEST = 300  # characters of an outcome that a slice shows

Event = dict[str, Any]


@dataclass(slots=True)
class Extra:
    """What is known about a step beyond its record.

    Attributes
    ----------
    tracks
        The tracks, by their place in `Details.tracks`, that took part in the step, and what their slices say.
    counters
        Values that hold from the end of the step on, by the counter's name and the series within it.
    """

    tracks: dict[int, dict[str, Any]] = field(default_factory=dict)
    counters: dict[str, dict[str, float]] = field(default_factory=dict)


class Details(Protocol):
    """What somebody who knows a kind of machine adds to its trace: tracks of its own, and counters."""

    tracks: tuple[str, ...]

    def step(self, record: StepRecord) -> Extra:
        """What a step comes to; called for every step in order."""
        ...

    def event(self, record: EditRecord | SignalRecord) -> None:
        """Note an edit, or a signal that was taken; called in order with the steps."""
        ...


class NoDetails:
    """A machine of which nothing more is known than its journal says."""

    tracks: tuple[str, ...] = ()

    def step(self, record: StepRecord) -> Extra:
        return Extra()

    def event(self, record: EditRecord | SignalRecord) -> None: ...


def write_trace(journal: Journal, file: BinaryIO, details: Details | None = None) -> int:
    """Write the trace of a journal, streaming both; gives the number of events.

    Raises
    ------
    JournalError
        Where the journal is damaged.
    """
    encode, count = msgspec.json.Encoder().encode, 0
    header = {"run": journal.header.run, "created": journal.header.created, "machine": journal.header.machine.name}
    file.write(b'{"displayTimeUnit":"ms","otherData":' + encode(header) + b',"traceEvents":[')
    for event in events(journal, details or NoDetails()):
        file.write((b",\n" if count else b"\n") + encode(event))
        count += 1
    file.write(b"\n]}\n")
    return count


def events(journal: Journal, details: Details) -> Iterator[Event]:
    """The events of a trace, in order of time.

    Time is the work recorded so far: a run that was paused for an hour shows no gap. What the run went back from is
    left out, as it does not count in the end; a mark says where it came back to.
    """
    header = journal.header
    chart = Chart.of_record(header.machine)
    yield from _names(f"{header.machine.name} (run {header.run})", ("machine", *details.tracks))
    returns, now = came_back(journal), 0
    for record in journal.timeline():
        while returns and returns[0].n <= record.n:
            back = returns.popleft()
            yield _mark(now, f"back from step {back.left}", step=back.n)
        if isinstance(record, StepRecord):
            extra = details.step(record)
            said = {
                "step": record.n,
                "transition": str(chart.arrows[record.e]),
                "guards": values_at(record.g, header.machine.variables(record.p)),
                "outcome": _shortened(record.o),
                "raised": f"{record.x.exception}: {record.x.message}"[:LONGEST] if record.x else None,
            }
            yield _slice(MACHINE, record, now, {name: value for name, value in said.items() if value not in ({}, None)})
            for track, words in extra.tracks.items():
                yield _slice(MACHINE + 1 + track, record, now, {"step": record.n, **words})
            now += record.t
            for name, series in extra.counters.items():
                yield {"ph": "C", "name": name, "pid": PID, "tid": MACHINE, "ts": now / 1e3, "args": series}
        elif isinstance(record, SignalRecord):
            details.event(record)
            payload = {} if record.o is None else {"payload": _shortened(record.o)}
            yield _mark(now, f"signal {record.name}", step=record.n, **payload)
        elif isinstance(record, RefusedRecord):
            yield _mark(now, f"refused signal {record.name}", step=record.n, why=record.why[:LONGEST])
        elif isinstance(record, EditRecord):
            details.event(record)
            yield _mark(now, f"edit {record.name}", step=record.n, outcome=_shortened(record.o))
        elif isinstance(record, PauseRecord):
            yield _mark(now, "pause", step=record.n)
        elif isinstance(record, ErrorRecord):
            error = f"{record.exception}: {record.message}"
            yield _mark(now, f"failed in {record.p}", step=record.n, error=error[:LONGEST])
        elif isinstance(record, EndRecord):
            yield _mark(now, f"end: {record.status}", step=record.n)


@dataclass(frozen=True, slots=True)
class Return:
    """The run came back to before step `n`, from before step `left`."""

    n: int
    left: int


def came_back(journal: Journal) -> deque[Return]:
    """The places that the run went back to, in order, as far as they count in the end."""
    returns: deque[Return] = deque()
    steps = 0
    for record in journal.records():
        if isinstance(record, GotoRecord):
            while returns and returns[-1].n > record.n:
                returns.pop()
            returns.append(Return(record.n, steps))
            steps = record.n
        elif isinstance(record, StepRecord):
            steps = record.n + 1
    return returns


def _names(process: str, tracks: Iterable[str]) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": PID, "tid": MACHINE, "args": {"name": process}}
    for tid, name in enumerate(tracks):
        yield {"ph": "M", "name": "thread_name", "pid": PID, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": PID, "tid": tid, "args": {"sort_index": tid}}


def _slice(tid: int, record: StepRecord, start_ns: int, args: Mapping[str, Any]) -> Event:
    return {
        "ph": "X", "name": record.p, "cat": "phase", "pid": PID, "tid": tid,
        "ts": start_ns / 1e3, "dur": record.t / 1e3, "args": args,
    }  # fmt: skip


def _mark(now_ns: int, name: str, **args: Any) -> Event:
    """An instant across the whole process."""
    return {
        "ph": "i", "s": "p", "name": name, "cat": "event", "pid": PID, "tid": MACHINE, "ts": now_ns / 1e3, "args": args
    }  # fmt: skip


def _shortened(outcome: Any) -> Any:
    """An outcome, or the beginning of it as text: a prompt of 100,000 tokens would bury all else."""
    if outcome is None:
        return None
    text = msgspec.json.encode(outcome).decode()
    return outcome if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
