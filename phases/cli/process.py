"""What holds for every command as a process: its streams, what Ctrl-C does, and how it exits."""

import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

FAILED, WRONG_COMMAND_LINE, DIVERGED, INCOMPLETE, INTERRUPTED = 1, 2, 3, 4, 130


def as_process(command: Callable[[], None]) -> NoReturn:
    """Run a command to its end and exit with its status; no traceback for anything that is not our mistake.

    It imports little itself, so that Ctrl-C is heeded from the first moment.
    """
    _mend_streams()
    with _interrupts() as interrupted, _warnings_in_one_line():
        try:
            status = _status_of(command, interrupted)
        except BaseException:  # what Ctrl-C breaks off may end as any error: NumPy's import makes an ImportError of it
            if not interrupted():
                raise
            status = INTERRUPTED
        if interrupted():
            for stream in (sys.stdout, sys.stderr):
                _silence(stream)  # it may have been writing to a pipe that nobody reads; the exit must not wait for it
            sys.exit(INTERRUPTED if status else 0)
        sys.exit(_flushed(status))


def _status_of(command: Callable[[], None], interrupted: Callable[[], bool]) -> int:
    try:
        command()
    except SystemExit as exited:
        return exited.code if isinstance(exited.code, int) else int(exited.code is not None)
    except BrokenPipeError:  # whoever read our output has seen enough
        return FAILED
    except Exception as error:
        if interrupted():
            raise
        from phases.cli.screen import complain

        complain(error)
        return FAILED
    return 0


def _mend_streams() -> None:
    """Let closed streams lead nowhere, so that no file of ours takes their place; escape what cannot be encoded."""
    if os.environ.get("COLUMNS") == "0":  # which means unknown; tables would come to nothing
        del os.environ["COLUMNS"]
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, the process ends with it
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a question: has Ctrl-C broken the command off? A run that is being driven answers Ctrl-C by itself."""
    seen = False

    def heed(number: int, frame: object) -> NoReturn:
        nonlocal seen
        seen = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # whoever started us wants Ctrl-C ignored, or answers it
        yield lambda: seen
        return
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, heed)
    try:
        yield lambda: seen
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, before)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: object, *where: object, **more: object) -> None:
        from phases.cli.screen import warn

        warn(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _flushed(status: int) -> int:
    """The status once everything printed has left us; what cannot leave is a failure, and no traceback at the exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            status = status or FAILED
            _silence(stream)
            if error.errno != errno.EPIPE:
                with suppress(OSError):
                    print(f"phasewalk: the output cannot be written: {error.strerror}", file=sys.stderr, flush=True)
    return status


def _silence(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
