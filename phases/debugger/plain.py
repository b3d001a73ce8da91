"""The line mode: a command a line in, its answer out."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

from phases.debugger.command import Quit
from phases.debugger.commands import MENDABLE, attempt, complaint
from phases.debugger.session import Session
from phases.interrupts import interrupts_heeded
from phases.printable import printable
from statemachine import Status

PROMPT = "(phasewalk) "


def converse(session: Session[Any], source: TextIO, answer: TextIO) -> int:
    """Read commands until the end of input or quit, and give how many failed; Ctrl-C pauses what is running."""
    talking = source.isatty()
    failed = 0
    print(session.where(), file=answer, flush=True)
    with interrupts_heeded(lambda: session.run.status == "running", session.pause):
        for line in _lines(source, answer if talking else None):
            before = session.run.status
            try:
                lines = attempt(session, line)
                failed += session.run.status is Status.FAILED is not before
            except Quit:
                break
            except MENDABLE as error:
                lines = [complaint(error)]
                failed += 1
            for text in lines:
                print(printable(text), file=answer)
            answer.flush()
    return failed


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
