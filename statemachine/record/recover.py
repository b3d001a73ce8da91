"""Goes on with a run whose process ended before it did, in the file that recorded it."""

import os
from typing import Any, Literal

from statemachine.errors import JournalError
from statemachine.execution.run import Run
from statemachine.record.divergence import Divergence
from statemachine.record.journal import Journal
from statemachine.record.records import EndRecord
from statemachine.record.replay import follow
from statemachine.record.writer import JournalWriter


def recover(
    path: str | os.PathLike[str],
    run: Run[Any],
    *,
    every: Literal["50 ms", "step"] = "50 ms",
    sync: bool = False,
) -> Divergence | None:
    """Bring a ready run to where a journal ends, and let it go on there, recorded in the same file.

    No finished phase runs again: its outcome is taken from the record. A line that was never finished is cut off. What
    stands behind the context is made anew by `Resources.rebuild`.

    Parameters
    ----------
    path
        A journal that no process writes to any more.
    run
        A ready run of the same machine, over a context as it was at the start, without a journal of its own.
    every, sync
        See `JournalWriter`.

    Returns
    -------
    Divergence or None
        Where the machine behaves, or the context is, otherwise than the record says; the file is as it was then.

    Raises
    ------
    JournalError
        When the journal is damaged, cannot be written, or the run has a journal already.
    """
    if run.journal is not None:
        raise JournalError(f"run {run.id} is recorded elsewhere already: recover a run that has no journal")
    journal = Journal.open(path)
    writer = JournalWriter(path, every=every, sync=sync, new=False)
    try:
        divergence, pending = follow(journal, run)
        if divergence is None:
            Journal.open(path, repair=True)
            if not run.status.ended:
                run.resources.rebuild(run.context)
            writer.go_on(run, chain=journal.checksum(), ended=isinstance(journal.last(), EndRecord))
            run.journal = writer
            run.wait_as_recorded(pending)  # and are recorded, whatever becomes of them; so is an end that was not yet
    finally:
        if run.journal is not writer or run.status.ended:
            writer.close()
    return divergence
