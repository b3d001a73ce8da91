"""The files that a command is given: looked at before anything slow is done, and before anything could hang."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import typer

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def readable_file(path: Path | None) -> Path | None:
    """For an option: refuse what is no regular file, as reading a FIFO or a device may never end."""
    if path is not None and (kind := _kind(path)):
        raise typer.BadParameter(f"{path} is {kind}, not a regular file")
    return path


def readable_file_or_folder(path: Path) -> Path:
    """For an argument: as `readable_file`, but a folder will do too."""
    if not path.is_dir():
        readable_file(path)
    return path


def check_new(path: Path | None, option: str, *, writable: bool = True) -> None:
    """Refuse a file that exists already, or, unless told otherwise, one that cannot be made."""
    if path is None:
        return
    if os.path.lexists(path):
        raise typer.BadParameter(f"{path} exists already; choose another name or remove it", param_hint=option)
    if writable:
        _check_folder(path, option)


def check_snapshot(path: Path | None, *, force: bool, resumed: Path | None = None, journal: Path | None = None) -> None:
    """Refuse a place where Ctrl-C could not save, and one that is taken, unless by force or by the run resumed."""
    option = "--snapshot"
    if path is None:
        return
    if journal is not None and path.absolute() == journal.absolute():
        raise typer.BadParameter(f"{path} cannot be journal and snapshot both", param_hint=option)
    if path.is_symlink():
        raise typer.BadParameter(f"{path} is a link, which is never replaced; name a plain file", param_hint=option)
    if kind := _kind(path):
        raise typer.BadParameter(f"{path} is {kind}; a snapshot is a regular file", param_hint=option)
    mine = resumed is not None and path.exists() and path.samefile(resumed)
    if path.exists() and not force and not mine:
        raise typer.BadParameter(
            f"{path} exists already; choose another name, or replace it with --force", param_hint=option
        )
    _check_folder(path, option)


def check_grown(path: Path, option: str, *, unlike: Path) -> None:
    """Refuse a file that cannot be gone on with: one that is read meanwhile, no regular file, or in no folder."""
    if kind := _kind(path):
        raise typer.BadParameter(f"{path} is {kind}, not a regular file", param_hint=option)
    if path.exists():
        if path.samefile(unlike):
            raise typer.BadParameter(f"{path} is what is read; choose another name", param_hint=option)
        return
    _check_folder(path, option)


@contextmanager
def output_file(path: Path | None, *, unlike: Path | None = None) -> Iterator[BinaryIO]:
    """Where an answer goes: stdout for None and for -, else a file that is there whole or as it was before.

    Parameters
    ----------
    unlike
        What is read meanwhile, and so cannot be written.
    """
    if path is None or is_stdout(path):
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if unlike is not None and path.exists() and path.samefile(unlike):
        raise typer.BadParameter(f"{path} is what is read; choose another name", param_hint="--output")
    if path.exists() and not path.is_file():  # a device or a pipe takes it as it comes; nothing may stand in its place
        with os.fdopen(
            os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)), "wb"
        ) as file:  # or a FIFO nobody reads would hang
            os.set_blocking(file.fileno(), True)
            yield file
        return
    whole = path.resolve()
    half = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    try:
        with half.open("wb") as file:
            yield file
        half.replace(whole)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        half.unlink(missing_ok=True)


def is_stdout(path: Path | None) -> bool:
    """Whether - stands for a file's name."""
    return path is not None and str(path) == "-"


def is_journal(path: Path) -> bool:
    """Whether a file begins as a journal does; a snapshot begins with a length."""
    with path.open("rb") as file:
        return file.read(1) == b"{"


def _kind(path: Path) -> str:
    """What stands there if it is no regular file; "" for a regular one, and where nothing stands."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return next((kind for is_one, kind in _KINDS if is_one(mode)), "")


def _check_folder(path: Path, option: str) -> None:
    """Refuse a file in whose folder no file can be made: found out by making one that nobody sees."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be made: {error.strerror}", param_hint=option) from error
