"""What the subcommands print besides their answer: progress, and errors a user can mend."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

LARGE_CHECKPOINT = 64 * 2**20  # bytes; anything smaller is there before a bar could be seen


def stderr() -> "Console":
    """A console for everything that is not the answer."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def loading_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr while a large checkpoint loads; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(f"loading {what}", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=total >= LARGE_CHECKPOINT)

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
        task = bar.add_task(what, total=None)
        yield lambda steps: bar.update(task, completed=steps)


def check_new(path: Path | None, option: str) -> None:
    """Refuse a file that exists already, before anything slow is done."""
    if path is not None and path.exists():
        raise typer.BadParameter(f"{path} exists already; choose another name or remove it", param_hint=option)


def fail(error: Exception) -> None:
    """Print an error that a user can mend in one line and exit with status 1; any other is raised again."""
    from gpu import CapacityError, CheckpointError, LogitsError, NoFreeRows, SelfCheckError
    from phases.errors import RequestError
    from statemachine import GraphvizMissing, PhaseError, StateMachineError

    mendable = (
        RequestError, CheckpointError, CapacityError, LogitsError, NoFreeRows, SelfCheckError, GraphvizMissing,
        StateMachineError, OSError,
    )  # fmt: skip
    shown: BaseException = error
    if isinstance(error, PhaseError):
        shown = error.__cause__ or error
        if not isinstance(shown, mendable):
            raise error
    if not isinstance(shown, mendable):
        raise error
    stderr().print(f"phasewalk: {shown}", style="red", markup=False, soft_wrap=True)
    sys.exit(1)
