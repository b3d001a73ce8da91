"""What the subcommands print: JSON, progress, warnings, and errors a user can mend."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from phases.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from gpu import Progress

_STEERING = re.compile(r"[\x7f-\x9f]")  # the control characters that JSON does not escape
NARROWEST = 72  # columns
LARGE_CHECKPOINT = 64 * 2**20  # bytes; anything smaller is there before a bar could be seen


def stdout() -> "Console":
    """A console for an answer that is a table; on a terminal narrower than words it runs over, but can be read."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, NARROWEST)
    return console


def stderr() -> "Console":
    """A console for everything that is not the answer."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def shown(text: str) -> str:
    """Text from elsewhere, for rich: neither the terminal nor rich's markup obeys it."""
    from rich.markup import escape

    return escape(printable(text))


def adapters(rank: int | None) -> str:
    """Say at the end of a line which LoRA adapters a graph takes, or nothing if it takes none."""
    return "" if rank is None else f"; takes adapters of rank 1 to {rank}"


@contextmanager
def loading_bar(what: str, *, doing: str = "loading") -> Iterator["Progress | None"]:
    """A progress bar on stderr while a large checkpoint loads; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                for before in tasks.values():
                    bar.update(before, visible=False)
                seen = not 0 < total < LARGE_CHECKPOINT
                tasks[step] = bar.add_task(f"{doing} {shown(what)}: {step}", total=total or None, visible=seen)
            bar.update(tasks[step], completed=done)

        yield progress


@contextmanager
def step_counter(what: str) -> Iterator[Callable[[int], None] | None]:
    """A count of steps on stderr while something long is walked through; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}, {task.completed:.0f} steps"), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(shown(what), total=None)
        yield lambda steps: bar.update(task, completed=steps)


@contextmanager
def token_bar(doing: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr while tokens are counted: done, and in all; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(shown(doing), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def request_bar(done: int, total: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr while requests are answered: how many are by now; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("requests"), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def build_bar(doing: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress bars on stderr for phases that lie in one another; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(f"{shown(doing)}: {shown(phase)}", total=total)
            bar.update(tasks[phase], completed=done)
            if done >= total:
                bar.remove_task(tasks.pop(phase))

        yield progress


def print_json(value: Any) -> None:
    """Print one JSON object, in characters that stdout can hold and no terminal obeys."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=not unicode)
    print(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def tell(message: str) -> None:
    """Tell something on stderr in a plain line; without rich, whose import a first token would wait for."""
    with suppress(OSError):  # there may be nowhere to tell it
        print(printable(message), file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Tell on stderr what went otherwise than asked, without ending."""
    stderr().print(f"phasewalk: {printable(message)}", style="yellow", markup=False, soft_wrap=True)


def complain(error: Exception) -> None:
    """Print an error that a user can mend in one line; any other is raised again."""
    from gpu import (
        CapacityError,
        CheckpointError,
        DeviceError,
        ExportError,
        LogitsError,
        NoFreeRows,
        OptionError,
        PlanError,
        SelfCheckError,
    )
    from phases.cli.target import UserCodeError
    from phases.errors import RequestError
    from statemachine import GraphvizMissing, PhaseError, StateMachineError

    mendable = (
        RequestError, CheckpointError, CapacityError, DeviceError, ExportError, LogitsError, NoFreeRows, OptionError,
        PlanError, SelfCheckError, GraphvizMissing, StateMachineError, OSError, MemoryError, UserCodeError,
    )  # fmt: skip
    found: BaseException = error
    if isinstance(error, PhaseError):
        found = error.__cause__ or error
    if not isinstance(found, mendable):
        raise error
    with suppress(OSError):  # there may be nowhere left to complain
        stderr().print(f"phasewalk: {told(found)}", style="red", markup=False, soft_wrap=True)


def told(error: BaseException) -> str:
    """An error in the words of the command line."""
    from phases.errors import PromptTooLong

    if isinstance(error, PromptTooLong):
        return error.told("--capacity")
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if isinstance(error, MemoryError):
        return f"not enough memory. {printable(str(error))}".rstrip()
    return printable(str(error)) or type(error).__name__
