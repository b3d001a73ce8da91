"""The line mode: a command a line in, its answer out."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from phases.debugger.command import Quit
from phases.debugger.commands import execute
from phases.debugger.generation import GenerationSession

PROMPT = "(phasewalk) "


def converse(session: GenerationSession, source: TextIO, answer: TextIO) -> None:
    """Read commands until the end of input or quit; Ctrl-C pauses what is running."""
    talking = source.isatty()
    print(session.where(), file=answer, flush=True)
    with _interrupt_pauses(session):
        for line in _lines(source, answer if talking else None):
            try:
                lines = execute(session, line)
            except Quit:
                return
            for text in lines:
                print(text, file=answer)
            answer.flush()


def _lines(source: TextIO, prompts: TextIO | None) -> Iterator[str]:
    if source is sys.stdin and prompts is not None:
        with suppress(ImportError):
            import readline  # noqa: F401, gives input() a history and editing
    while True:
        try:
            if source is sys.stdin and prompts is not None:
                yield input(PROMPT)
                continue
            line = source.readline()
        except EOFError:
            return
        if not line:
            return
        yield line


@contextmanager
def _interrupt_pauses(session: GenerationSession) -> Iterator[None]:
    """While it lasts, Ctrl-C rests the run at the next boundary; a second one ends the program as usual."""

    def heed(number: int, frame: object) -> None:
        if session.run.status != "running":
            raise KeyboardInterrupt
        session.pause()

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, heed)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
