"""phasewalk trace: a recorded run as a trace for Perfetto."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phases.cli.files import is_stdout, output_file, readable_file
from phases.cli.screen import stderr
from phases.cli.target import MachineOption, generating_machine

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.views.recorded_rows import RecordedRows
    from statemachine import Journal, Machine
    from statemachine.record.records import EditRecord, SignalRecord, StepRecord
    from statemachine.views.trace import Details, Extra


def trace(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A journal.", exists=True, dir_okay=False, callback=readable_file),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Unless given, or if -, stdout.")
    ] = None,
    machine: MachineOption = None,
) -> None:  # fmt: skip
    """Turn a recorded run into a trace: open it with Perfetto (ui.perfetto.dev) or chrome://tracing.

    One track for the machine and one for each row, a slice for each phase, counters for the length of each row's KV
    cache and for tokens/s, marks for signals, edits, pauses and returns. Time is the work recorded so far: a pause
    leaves no gap. Journals of other machines have the machine's track and the marks.

    phasewalk run "Tell me a story about a fox." --journal fox.jsonl

    phasewalk trace fox.jsonl -o fox.json
    """
    from statemachine import Journal
    from statemachine.views.trace import write_trace

    generating = generating_machine(machine)
    journal = Journal.open(path)
    details = _details(journal, generating)
    with output_file(output, unlike=path) as file:
        count = write_trace(journal, file, details)
    if output is not None and not is_stdout(output):
        stderr().print(f"{output}: {count} events; open it at ui.perfetto.dev", markup=False, soft_wrap=True)


def _details(journal: "Journal", machine: "Machine[Generation]") -> "Details | None":
    """The rows of a generation; None for any other machine."""
    from phases.views.recorded_rows import RecordedRows
    from statemachine import JournalError

    try:
        return GenerationDetails(RecordedRows(journal, machine))
    except JournalError:
        return None


class GenerationDetails:
    """A track for each row; counters for the length of its KV cache, and for tokens/s of all rows together."""

    def __init__(self, rows: "RecordedRows") -> None:
        self._rows = rows
        self._since = 0  # ns of work since the last tokens
        self._lengths: list[int] = []
        self.tracks = tuple(f"row {row}" for row in range(len(rows.context.slots)))

    def step(self, record: "StepRecord") -> "Extra":
        from statemachine.views.trace import Extra

        walked, context = self._rows.step(record), self._rows.context
        extra = Extra({row: {} for row in walked.rows})
        for token in walked.tokens:
            extra.tracks[token.row] = {"token": token.id} | ({"forced": True} if token.forced else {})
            reason = context.finish_reasons[token.row]
            if reason is not None:
                extra.tracks[token.row]["finished"] = str(reason)
        self._since += record.t
        if walked.tokens:
            extra.counters["tokens/s"] = {"tokens/s": len(walked.tokens) / max(self._since, 1) * 1e9}
            self._since = 0
        if context.cached != self._lengths:
            self._lengths = list(context.cached)
            extra.counters["KV length"] = {name: float(n) for name, n in zip(self.tracks, self._lengths, strict=True)}
        return extra

    def event(self, record: "EditRecord | SignalRecord") -> None:
        self._rows.event(record)
