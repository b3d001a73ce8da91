"""The file of a plan: a page that says what follows and for which machine, then what TensorRT made.

The page is `MAGIC`, the SHA-256 of what follows on it, and a JSON object; the engine comes after it, and its SHA-256
stands in that object. Nothing of a file is given to TensorRT before all of it was checked.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from gpu.errors import PlanError
from gpu.printable import printable
from gpu.whole_folder import whole_file

FORMAT = 2  # of the file, and of the inputs and profiles of the engine in it
MAGIC = b"phasewalk plan\r\n"  # a file that was changed as text has another end of line
PAGE = 4096  # bytes
_DIGEST = hashlib.sha256().digest_size
_COUNT = msgspec.Meta(ge=1, le=2**31 - 1)


class PlanIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan says of itself."""

    fingerprint: str  # of the checkpoint, see `model_fingerprint`
    flavour: str  # tensorrt or tensorrt_rtx
    version: str  # of it; no other version runs the plan
    devices: tuple[str, ...]  # classes that it runs on, sm89 for compute capability 8.9
    dtype: str  # of weights, activations and cache; logits are float32
    capacity: Annotated[int, _COUNT]  # positions of a row
    max_batch: Annotated[int, _COUNT]  # rows that run together at most
    chunk: Annotated[int, _COUNT]  # tokens of a row that a prefill takes at most
    lora_rank: Annotated[int, _COUNT] | None  # of adapters at most; None: the engine takes none


class Here(NamedTuple):
    """What a plan must be for, to run in this process."""

    flavour: str
    version: str
    device: str  # class of the GPU


class ReadPlan(NamedTuple):
    """A plan that was read and found whole."""

    identity: PlanIdentity
    engine: bytes
    sha256: str  # of the engine


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    identity: PlanIdentity
    engine_size: Annotated[int, msgspec.Meta(ge=1)]  # bytes
    engine_sha256: str


class _Version(msgspec.Struct):
    format: int


def check_absent(path: Path) -> None:
    """Raise PlanError if something stands at `path`."""
    if os.path.lexists(path):
        raise PlanError(f"{printable(path)} exists already: choose another name or remove it")


def write_plan(path: Path, identity: PlanIdentity, engine: memoryview) -> None:
    """Write a plan whole, or not at all.

    Raises
    ------
    PlanError
        If something stands at `path`.
    OSError
        If the disk is full, or cannot be written to.
    """
    page = _Page(FORMAT, identity, engine.nbytes, hashlib.sha256(engine).hexdigest())
    text = msgspec.json.encode(page).ljust(PAGE - len(MAGIC) - _DIGEST)
    assert len(text) == PAGE - len(MAGIC) - _DIGEST
    with whole_file(path) as file:
        file.write(MAGIC + hashlib.sha256(text).digest() + text)
        file.write(engine)
        check_absent(path)


def read_identity(path: Path) -> PlanIdentity:
    """Read what a plan says of itself; the engine is not looked at, but for its size.

    Raises
    ------
    PlanError
        If it is no plan, is of another version of phasewalk, or was cut short.
    OSError
        If it cannot be read.
    """
    with _opened(path) as file:
        return _told(path, file).identity


def read_engine(path: Path, here: Here, checkpoint_fingerprint: str) -> ReadPlan:
    """Read a plan that is of this checkpoint and for this machine, and the engine in it.

    Raises
    ------
    PlanError
        If it is not, or is damaged.
    OSError
        If it cannot be read.
    """
    with _opened(path) as file:
        page = _told(path, file)
        if (reason := _refused(page.identity, here, checkpoint_fingerprint)) is not None:
            raise PlanError(f"{printable(path)} cannot be run here: {reason}; build it again, with phasewalk build")
        engine = file.read(page.engine_size)
    if hashlib.sha256(engine).hexdigest() != page.engine_sha256:
        raise PlanError(f"{printable(path)} is damaged: its engine is not what was built; build it again")
    return ReadPlan(page.identity, engine, page.engine_sha256)


def _opened(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():  # to open a FIFO may never end
        raise PlanError(f"{printable(path)} is no regular file")
    return path.open("rb")


def _refused(identity: PlanIdentity, here: Here, checkpoint_fingerprint: str) -> str | None:
    if identity.fingerprint != checkpoint_fingerprint:
        return (
            f"it is of another model: it names the fingerprint {printable(identity.fingerprint)}, the checkpoint has "
            f"{checkpoint_fingerprint}"
        )
    built = f"{identity.flavour} {identity.version}"
    if built != f"{here.flavour} {here.version}":
        return f"it was built by {printable(built)}, installed is {here.flavour} {here.version}"
    if here.device not in identity.devices:
        return f"it is for {printable(', '.join(identity.devices))}, the GPU is {here.device}"
    return None


def _told(path: Path, file: BinaryIO) -> _Page:
    try:
        return _page(file.read(PAGE), os.fstat(file.fileno()).st_size)
    except PlanError as error:
        raise PlanError(f"{printable(path)} {error}") from None


def _page(page: bytes, size: int) -> _Page:
    if not page.startswith(MAGIC):
        raise PlanError("is no plan that phasewalk build made")
    digest, text = page[len(MAGIC) : len(MAGIC) + _DIGEST], page[len(MAGIC) + _DIGEST :]
    if len(page) < PAGE or hashlib.sha256(text).digest() != digest:
        raise PlanError("is damaged: its first page is not what was written; build it again")
    try:
        version = msgspec.json.decode(text, type=_Version).format
        if version != FORMAT:
            raise PlanError(f"is a plan of format {version}, this version reads and writes {FORMAT}; build it again")
        found = msgspec.json.decode(text, type=_Page)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PlanError(f"is damaged: its first page makes no sense ({printable(error)}); build it again") from None
    if size != PAGE + found.engine_size:
        raise PlanError(f"is damaged: it has {size} bytes, expected {PAGE + found.engine_size}; build it again")
    return found
