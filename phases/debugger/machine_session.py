"""Sessions of a machine of any kind, made of the machine and of what makes contexts for it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from phases.debugger.errors import DebuggerError
from phases.debugger.recording import Recording
from phases.debugger.session import Session
from statemachine import Journal, Machine, Run, restore
from statemachine.execution import host_state
from statemachine.record import exact
from statemachine.record.snapshot import load

Context = TypeVar("Context")


class RecordedSession(Session[Context]):
    """A recorded run of any machine."""

    record: Recording[Context]


def live(
    machine: Machine[Context], new_context: Callable[[], Context], journal: Path | None = None
) -> Session[Context]:
    """Debug a new run, recorded if a journal is named; raises JournalError where that cannot be made."""
    context = new_context()
    if journal is None:
        run = Run(machine, context, keep=True)
    else:
        from statemachine import JournalWriter

        run = Run(machine, context, keep=True, journal=JournalWriter(journal))

    def saved(path: Path) -> Run[Context]:
        snapshot = load(path)
        made = _as_recorded(snapshot.journal, machine, new_context)
        if divergence := restore(snapshot, made):
            raise DebuggerError(f"{path} is of another machine or context: {divergence.report()}")
        return made

    return Session(run, saved=saved)


def recorded(path: Path, machine: Machine[Context], new_context: Callable[[], Context]) -> RecordedSession[Context]:
    """Walk a journal that this machine recorded, from its start.

    Raises
    ------
    JournalError
        When it is damaged, or its context cannot be one of those that are made.
    """
    journal = Journal.open(path)
    recording = Recording(journal, _as_recorded(journal, machine, new_context))
    recording.run.goto(recording.run.timeline.first)
    return RecordedSession(recording.run, recording, f"recorded in {path.name}")


def _as_recorded(journal: Journal, machine: Machine[Context], new_context: Callable[[], Context]) -> Run[Context]:
    """A ready run over a context with the fields that the recorded one began with, as far as the record holds them."""
    header, context = journal.header, new_context()
    began = header.origin if header.began is None else header.began
    fields = host_state.save(context)
    known = {str(name) for name in fields}
    held = {name: value for name, value in (began or {}).items() if name in known}
    host_state.restore(context, fields | exact.typed_fields(context, held))
    return Run(machine, context, run_id=header.run, request=header.request, keep=True)
