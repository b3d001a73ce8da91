"""Sessions of a machine of any kind, made of the machine and of what makes contexts for it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from phases.debugger.recording import Recording
from phases.debugger.session import Session
from statemachine import Journal, JournalWriter, Machine, Run, SnapshotError, restore
from statemachine.execution import host_state
from statemachine.record import exact
from statemachine.record.snapshot import load

Context = TypeVar("Context")


class RecordedSession(Session[Context]):
    """A recorded run of any machine."""

    record: Recording[Context]


def live(
    machine: Machine[Context],
    new_context: Callable[[], Context],
    journal: Path | None = None,
    snapshot: Path | None = None,
) -> Session[Context]:
    """Debug a new run, or one that a snapshot holds; recorded, if a journal is named.

    Raises
    ------
    JournalError, SnapshotError
        When the journal cannot be made; when the snapshot is damaged, or of another machine.
    """
    restored = partial(_restored, machine, new_context)
    if snapshot is not None:
        return Session(restored(snapshot, journal), None, f"loaded from {snapshot.name}", restored)
    context = new_context()
    run = Run(machine, context, keep=True, journal=JournalWriter(journal) if journal else None)
    return Session(run, saved=restored)


def recorded(path: Path, machine: Machine[Context], new_context: Callable[[], Context]) -> RecordedSession[Context]:
    """Walk a journal that this machine recorded, from its start.

    Raises
    ------
    JournalError
        When it is damaged, or its context cannot be one of those that are made.
    """
    journal = Journal.open(path)
    context = _context_of(journal, new_context)
    header = journal.header
    recording = Recording(journal, Run(machine, context, run_id=header.run, request=header.request, keep=True))
    recording.run.goto(recording.run.timeline.first)
    return RecordedSession(recording.run, recording, f"recorded in {path.name}")


def _restored(
    machine: Machine[Context], new_context: Callable[[], Context], path: Path, journal: Path | None = None
) -> Run[Context]:
    """The run that a snapshot holds; nothing is recorded of one that it cannot be."""
    snapshot = load(path)
    context, request = _context_of(snapshot.journal, new_context), snapshot.header.request
    if divergence := restore(snapshot, Run(machine, _context_of(snapshot.journal, new_context), request=request)):
        raise SnapshotError(f"{path} is of another machine or context: {divergence.report()}")
    run = Run(machine, context, request=request, keep=True, journal=JournalWriter(journal) if journal else None)
    restore(snapshot, run)
    return run


def _context_of(journal: Journal, new_context: Callable[[], Context]) -> Context:
    """A context with the fields that the recorded run began with, as far as the record holds them."""
    context, header = new_context(), journal.header
    began = header.origin if header.began is None else header.began
    fields = host_state.save(context)
    known = {str(name) for name in fields}
    held = {name: value for name, value in (began or {}).items() if name in known}
    host_state.restore(context, fields | exact.typed_fields(context, held))
    return context
