"""Snapshots: a resting run in one safetensors file, checked before anything of it is used.

A snapshot holds the run's record (header, steps, events: the lines of a journal) and what its resources gave to keep,
as named arrays. Arrays that an earlier snapshot of the same run in the same folder already holds are not written
again, but borrowed from there by name and checksum.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from statemachine.errors import JournalError, SnapshotError
from statemachine.record.journal import Journal
from statemachine.record.records import EditRecord, Header, Record, SignalRecord, StepRecord, header_of
from statemachine.record.replay import Divergence, play

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from statemachine.execution.run import Run

FORMAT, SCHEMA = "phasewalk.snapshot", "1"
RECORD = "record"  # the tensor that holds the journal's lines
MAX_HEADER = 16 * 2**20  # bytes
NAME = re.compile(r"[a-z0-9_.]{1,100}")
FILE_NAME = re.compile(r"[^/\\\0]{1,255}")


class Borrowed(msgspec.Struct, forbid_unknown_fields=True):
    """An array that stands in another snapshot of the same folder."""

    file: str
    sha256: str


class Contents(msgspec.Struct, forbid_unknown_fields=True):
    """What the file says of itself: its own arrays' checksums, and those it borrows."""

    own: dict[str, str]
    borrowed: dict[str, Borrowed]
    options: dict[str, Any]  # how the resources were saved


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that was read and checked."""

    path: Path
    journal: Journal  # its lines were read from the snapshot, not from a file
    arrays: Mapping[str, "npt.NDArray[Any]"]
    options: Mapping[str, Any]  # how the resources were saved, e.g. what is to be computed again

    @property
    def header(self) -> Header:
        return self.journal.header


def save(run: "Run[Any]", path: str | os.PathLike[str], *, borrow: bool = True, options: Mapping[str, Any]) -> None:
    """Write a snapshot of a resting run: to a temporary file, synced, then renamed.

    Raises
    ------
    SnapshotError
        When it cannot be written; a file that stood there before still does.
    """
    import numpy as np
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    saved = {n: np.ascontiguousarray(array) for n, array in run.resources.save(run.context, **options).items()}
    lines = np.frombuffer(_record_of(run), np.uint8)
    own: dict[str, npt.NDArray[Any]] = {RECORD: lines}
    borrowed: dict[str, Borrowed] = {}
    checksums = {RECORD: _sha256(lines)}
    for name, array in saved.items():
        checksum = _sha256(array)
        home = run.saved_arrays.get((path.parent.resolve(), name, checksum))
        if borrow and home and home != path.name and (path.parent / home).exists():
            borrowed[name] = Borrowed(home, checksum)
        else:
            own[name], checksums[name] = array, checksum
    contents = msgspec.json.encode(Contents(checksums, borrowed, dict(options))).decode()
    data = to_bytes(own, metadata={"format": FORMAT, "schema": SCHEMA, "contents": contents})
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        raise SnapshotError(f"the snapshot {path} cannot be written: {error.strerror}") from error
    folder = path.parent.resolve()
    for key in [key for key, home in run.saved_arrays.items() if key[0] == folder and home == path.name]:
        del run.saved_arrays[key]  # the file that held these has just been replaced
    run.saved_arrays.update({(folder, name, checksums[name]): path.name for name in own if name != RECORD})


def load(path: str | os.PathLike[str]) -> Snapshot:
    """Read a snapshot and check everything that can be checked without the machine it belongs to.

    Raises
    ------
    SnapshotError
        When there is none, it is damaged or hostile, a newer version wrote it, or what it borrows is missing.
    """
    path = Path(path)
    arrays, contents = _read(path)
    if odd := [name for name in contents.options if not NAME.fullmatch(name) or name in ("self", "context", "arrays")]:
        raise SnapshotError(f"{path} says that it was saved with {odd!r:.200}, which is no option")
    for name, borrowed in contents.borrowed.items():
        if not FILE_NAME.fullmatch(borrowed.file) or borrowed.file in (".", ".."):
            raise SnapshotError(f"{path} borrows from {borrowed.file!r}, which is no plain file name")
        home = path.parent / borrowed.file
        try:
            others, _ = _read(home, only=name)
        except SnapshotError as error:
            raise SnapshotError(f"{path} borrows {name!r} from {borrowed.file}: {error}") from error
        if name not in others or _sha256(others[name]) != borrowed.sha256:
            raise SnapshotError(f"{path} borrows {name!r} from {borrowed.file}, which no longer holds it")
        arrays[name] = others[name]
    if RECORD not in arrays or arrays[RECORD].dtype.name != "uint8":
        raise SnapshotError(f"{path} is no whole snapshot: it holds no record")
    try:
        journal = Journal.of_lines(path, arrays.pop(RECORD).tobytes())
        for _ in journal.records():
            pass
    except JournalError as error:
        raise SnapshotError(f"the record inside {path} is damaged: {error}") from error
    return Snapshot(path, journal, arrays, contents.options)


def restore(snapshot: Snapshot, run: "Run[Any]") -> Divergence | None:
    """Bring a ready run to where the snapshot was taken: its record by `apply` alone, its arrays by `Resources.load`.

    Returns
    -------
    Divergence or None
        Where the machine behaves otherwise than the record says.

    Raises
    ------
    ValueError
        When the arrays do not fit the run's resources.
    """
    if divergence := play(snapshot.journal, run):
        return divergence
    run.resources.load(run.context, snapshot.arrays, **snapshot.options)
    return None


def _record_of(run: "Run[Any]") -> bytes:
    """The header, steps and events of the run's present past, as the lines of a journal."""
    records: list[Record] = [header_of(run)]
    done = 0
    for event in run.events:
        records += run.step_records(done, event.number)
        done = event.number
        kind = {"signal": SignalRecord(n=event.number, name=event.name)}
        records.append(kind.get(event.kind) or EditRecord(n=event.number, name=event.name, o=event.outcome))
    steps: list[StepRecord] = run.step_records(done, run.step_count)
    return msgspec.json.Encoder().encode_lines([*records, *steps])


def _read(path: Path, *, only: str | None = None) -> tuple[dict[str, "npt.NDArray[Any]"], Contents]:
    """The arrays of one file, their checksums verified, and what the file says of itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, path.stat().st_size):
                raise SnapshotError(f"{path} is no snapshot: its header would be {length} bytes long")
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise SnapshotError(f"{path} is no snapshot, but {metadata['format']!r}")
        if metadata["schema"] != SCHEMA:
            raise SnapshotError(f"{path} has schema {metadata['schema']}, but this version reads schema {SCHEMA}")
        contents = msgspec.json.decode(metadata["contents"], type=Contents)
        names = set(header) - {"__metadata__"}
        if names != set(contents.own) or not all(NAME.fullmatch(name) for name in names | set(contents.borrowed)):
            raise SnapshotError(f"{path} is damaged: its arrays are not those that it lists")
        arrays = {}
        with safe_open(path, framework="numpy") as tensors:
            for name in names if only is None else names & {only}:
                arrays[name] = tensors.get_tensor(name)
                if _sha256(arrays[name]) != contents.own[name]:
                    raise SnapshotError(f"{path} is damaged: the checksum of {name!r} is wrong")
    except OSError as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{path} is no snapshot, or a damaged one: {error!r}") from error
    return arrays, contents


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return dict(pairs)


def _sha256(array: "npt.NDArray[np.generic]") -> str:
    digest = hashlib.sha256(f"{array.dtype.str}{list(array.shape)}".encode())
    digest.update(array.data if array.flags.c_contiguous else array.tobytes())
    return digest.hexdigest()
