"""Snapshots: a resting run in one safetensors file, checked before anything of it is used.

A snapshot holds the run's record (the lines of a journal) and what its resources gave to keep, as named arrays. Large
arrays can be put beside it instead, in a folder of pages that are named by what is in them: they are never changed, so
no later snapshot can harm an earlier one.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from statemachine.errors import JournalError, OutcomeError, SnapshotError
from statemachine.execution import host_state
from statemachine.execution.run import Run
from statemachine.record import exact
from statemachine.record.divergence import Divergence
from statemachine.record.files import check_regular, write_whole
from statemachine.record.header import header_of, step_records
from statemachine.record.journal import Journal
from statemachine.record.pages import Pages, check_readable, checksum_of
from statemachine.record.records import EditRecord, Header, PauseRecord, Record, StepRecord
from statemachine.record.replay import begin_where_recorded, play
from statemachine.record.validate import complaint_of_header
from statemachine.record.writer import event_record, pause_record, seal

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT, SCHEMA = "phasewalk.snapshot", "2"
RECORD = "record"  # the tensor that holds the journal's lines
SHARED = 4096  # bytes; smaller arrays stay in the snapshot
MAX_HEADER = 16 * 2**20  # bytes
NAME = re.compile(r"[a-z0-9_.]{1,100}")
CHECKSUM = re.compile(r"[0-9a-f]{64}")


class Contents(msgspec.Struct, forbid_unknown_fields=True):
    """What the file says of itself: checksums by the names of its own arrays, and of those among the pages."""

    own: dict[str, str]
    shared: dict[str, str]
    options: dict[str, Any]  # how the resources were saved
    history: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that was read and checked."""

    path: Path
    journal: Journal  # its lines were read from the snapshot, not from a file
    arrays: Mapping[str, "npt.NDArray[Any]"]
    options: Mapping[str, Any]  # how the resources were saved, e.g. what is to be computed again
    history: bool  # whether it holds the run's past

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Snapshot":
        """Read and check one, for the request in its header; raises SnapshotError if it is damaged, or none."""
        return load(path)

    @property
    def header(self) -> Header:
        return self.journal.header


def save(
    run: Run[Any],
    path: str | os.PathLike[str],
    *,
    history: bool = True,
    share: bool = False,
    options: Mapping[str, Any],
) -> None:
    """Write a snapshot of a resting run, see `Run.snapshot`.

    Raises
    ------
    SnapshotError
        When it cannot be written, or could not be read again; a file that stood there before still does.
    """
    import numpy as np
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    saved = {n: np.ascontiguousarray(array) for n, array in run.resources.save(run.context, **options).items()}
    own: dict[str, npt.NDArray[Any]] = {RECORD: np.frombuffer(_record_of(run, history=history), np.uint8)}
    shared: dict[str, str] = {}
    if odd := [name for name in saved if not NAME.fullmatch(name) or name == RECORD]:
        raise SnapshotError(f"an array cannot be called {exact.shown(odd[0])!r}: expected a name like 'weights.0'")
    try:
        check_regular(path)
        pages = Pages(path)
        for name, array in saved.items():
            if share and array.nbytes >= SHARED:
                shared[name] = pages.keep(array)
            else:
                own[name] = array
        checksums = {name: checksum_of(array) for name, array in own.items()}
        contents = msgspec.json.encode(Contents(checksums, shared, dict(options), history)).decode()
        metadata = {"format": FORMAT, "schema": SCHEMA, "contents": contents}
        write_whole(path, to_bytes(own, metadata=metadata))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SnapshotError(f"the snapshot {path} cannot be written: {reason}") from error


def load(path: str | os.PathLike[str]) -> Snapshot:
    """Read a snapshot and check everything that can be checked without the machine it belongs to.

    Raises
    ------
    SnapshotError
        When there is none, it is damaged or hostile, a newer version wrote it, or a page that it shares is missing.
    """
    path = Path(path)
    arrays, contents = _read(path)
    if odd := [name for name in contents.options if not NAME.fullmatch(name) or name in ("self", "context", "arrays")]:
        raise SnapshotError(f"{path} says that it was saved with {exact.shown(odd)}, which is no option")
    pages = Pages(path)
    for name, checksum in contents.shared.items():
        if not CHECKSUM.fullmatch(checksum) or name in arrays:
            raise SnapshotError(f"{path} is damaged: {name!r} is no shared array")
        try:
            arrays[name] = pages.read(checksum)
        except SnapshotError as error:
            raise SnapshotError(f"{path} needs {name!r} of its shared pages: {error}") from error
    if RECORD not in arrays or arrays[RECORD].dtype.name != "uint8":
        raise SnapshotError(f"{path} is no whole snapshot: it holds no record")
    try:
        lines = arrays.pop(RECORD).tobytes()
        journal = Journal.of_lines(path, lines)
        last = journal.last()
        if journal.torn or not isinstance(last, PauseRecord) or b',"c":' not in lines.splitlines()[-1]:
            raise SnapshotError(f"{path} is no whole snapshot: its record does not end where the run rested")
    except JournalError as error:
        raise SnapshotError(f"the record inside {path} is damaged: {error}") from error
    return Snapshot(path, journal, arrays, contents.options, contents.history)


def restore(snapshot: str | os.PathLike[str] | Snapshot, run: Run[Any]) -> Divergence | None:
    """Bring a ready run to where the snapshot was taken: its record by `apply` alone, its arrays by `Resources.load`.

    Parameters
    ----------
    snapshot
        Its file, or what was read of it.
    run
        A ready run of the same machine, over a context as it was at the start.

    Returns
    -------
    Divergence or None
        Where the machine behaves, or the context is, otherwise than the record says.

    Raises
    ------
    SnapshotError
        When the file cannot be read, is damaged, or is no snapshot; when the arrays do not fit the run's resources.
    JournalError
        When the record holds what no version of this machine recorded.
    """
    if not isinstance(snapshot, Snapshot):
        snapshot = load(snapshot)
    if not snapshot.history and (divergence := begin_where_recorded(snapshot.journal, run)):
        return divergence
    if divergence := play(snapshot.journal, run):
        return divergence
    try:
        run.resources.load(run.context, snapshot.arrays, **snapshot.options)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise SnapshotError(f"{snapshot.path} does not fit this run: {exact.shown(str(error), 1000)}") from error
    return None


def _record_of(run: Run[Any], *, history: bool) -> bytes:
    """The header, what the run has been through, and where it rests, as the lines of a journal."""
    records: list[Record] = _past(run) if history else [_header_without_past(run)]
    header = records[0]
    assert isinstance(header, Header)
    if complaint := complaint_of_header(header):
        raise SnapshotError(f"run {run.id} cannot be saved: {complaint}")
    try:
        lines = exact.encoder.encode_lines([*records, pause_record(run)])
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"run {run.id} cannot be saved: {exact.shown(str(error))}") from error
    return seal(lines, 0)[0]


def _past(run: Run[Any]) -> list[Record]:
    """The header, and the steps and events that lie behind the run."""
    timeline, number = run.timeline, run.step_count
    done = timeline.first
    header = header_of(run)
    if timeline.forgotten.beginning and timeline.origin:
        lacking = f"without what was before step {done}, which was not kept"
        header = msgspec.structs.replace(header, origin=_held(run, timeline.origin.fields, lacking), opaque=())
    records: list[Record] = [header]
    for event in timeline.events_here:
        records += step_records(timeline, done, event.number)
        records.append(event_record(event))
        done = event.number
    records += step_records(timeline, done, number)
    for record in records:
        if isinstance(record, StepRecord | EditRecord) and record.o is not None:
            _check(record.o, f"step {record.n}" if isinstance(record, StepRecord) else f"edit {record.name!r}")
    return records


def _header_without_past(run: Run[Any]) -> Header:
    """A header that begins where the run rests, with all that its context holds."""
    held = _held(run, host_state.save(run.context), "without its history")
    header = header_of(run)
    return msgspec.structs.replace(
        header,
        origin=held,
        opaque=(),
        began=header.origin if header.began is None else header.began,
        first=run.step_count,
        phase="" if run.phase is run.machine.start else run.phase_name,
    )


def _held(run: Run[Any], saved: dict[Any, Any], lacking: str) -> dict[str, Any]:
    """Host fields as JSON holds them, all and exactly, for they cannot be folded from earlier ones."""
    held, opaque = exact.fields(run.context, saved)
    lost = dict.fromkeys(opaque)
    with suppress(JournalError):
        typed = exact.typed_fields(run.context, held)
        lost |= dict.fromkeys(str(name) for name in typed if not exact.alike(typed[name], saved[name]))
        if not lost:
            return held
    raise SnapshotError(
        f"run {run.id} cannot be saved {lacking}: JSON cannot hold {', '.join(lost) or 'the fields'} of its context "
        f"as it is; save it with its whole history, declare the types of its fields, or name in __pinned__ what is a "
        f"resource rather than state"
    )


def _check(outcome: Any, where: str) -> None:
    try:
        exact.check(outcome)
    except OutcomeError as error:
        raise SnapshotError(f"the outcome of {where} cannot be saved: {error}") from error


def _read(path: Path) -> tuple[dict[str, "npt.NDArray[Any]"], Contents]:
    """The arrays of a snapshot's file, their checksums verified, and what the file says of itself."""
    from safetensors import SafetensorError, safe_open

    check_readable(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, path.stat().st_size):
                raise SnapshotError(f"{path} is no snapshot: its header would be {length} bytes long")
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise SnapshotError(f"{path} is no snapshot, but {exact.shown(metadata['format'])!r}")
        if metadata["schema"] != SCHEMA:
            said = exact.shown(metadata["schema"])
            raise SnapshotError(f"{path} has schema {said}, but this version reads schema {SCHEMA}")
        contents = msgspec.json.decode(metadata["contents"], type=Contents)
        names = set(header) - {"__metadata__"}
        if names != set(contents.own) or not all(NAME.fullmatch(name) for name in names | set(contents.shared)):
            raise SnapshotError(f"{path} is damaged: its arrays are not those that it lists")
        arrays = {}
        with safe_open(path, framework="numpy") as tensors:
            for name in names:
                arrays[name] = tensors.get_tensor(name)
                if checksum_of(arrays[name]) != contents.own[name]:
                    raise SnapshotError(f"{path} is damaged: the checksum of {name!r} is wrong")
    except OSError as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"{path} is no snapshot, or a damaged one: {exact.shown(repr(error))}") from error
    return arrays, contents


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return dict(pairs)
