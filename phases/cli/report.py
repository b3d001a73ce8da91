"""phasewalk report: a recorded run as one HTML page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phases.cli import options
from phases.cli.files import is_stdout, output_file, readable_file
from phases.cli.process import DIVERGED, INCOMPLETE
from phases.cli.recorded_model import model_of
from phases.cli.screen import loading_bar, stderr, warn
from phases.cli.target import MachineOption, generating_machine

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.lora import Adapters
    from statemachine import Journal, Machine, Verdict


def report(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A journal.", exists=True, dir_okay=False, callback=readable_file),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write the page; - is stdout.", dir_okay=False),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Run it again, and show where it diverges.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the checkpoint is now.", show_default="where it was when recorded")
    ] = None,
    lora: options.RecordedLora = None,
    machine: MachineOption = None,
) -> None:  # fmt: skip
    """Write a recorded run as one HTML page that needs no network.

    It shows the machine with its counts and times, the text with each token's surprise (and its candidates, if the run
    was recorded with --digest-every 1), a bar for each step, signals and edits, and what the run was made with.

    phasewalk run "Tell me a story about a fox." --journal fox.jsonl --digest-every 1

    phasewalk report fox.jsonl -o fox.html

    Exit status with --verify: 3 if it diverged, 4 if the record is incomplete; the page is written all the same.
    """
    from phases.views.report import report_of
    from statemachine import Journal

    generating, adapters = generating_machine(machine), options.adapters_of(lora or ())
    journal = Journal.open(path)
    verdict = _verified(journal, model, generating, adapters) if verify else None
    with output_file(output, unlike=path) as file:
        page = report_of(journal, verdict=verdict, model=model, machine=generating)
        file.write(page.encode(errors="replace"))
    if not is_stdout(output):
        stderr().print(f"{output}: open it in any browser", markup=False, soft_wrap=True)
    if verdict and verdict.divergence:
        warn(f"it diverged at step {verdict.divergence.step}, see the page")
        raise typer.Exit(DIVERGED)
    if verdict and not verdict.complete:
        warn(f"the record is incomplete: it ends at step {verdict.ends_at}")
        raise typer.Exit(INCOMPLETE)


def _verified(
    journal: "Journal", model: str | None, machine: "Machine[Generation]", adapters: "Adapters"
) -> "Verdict | None":
    from phases.replay import load_generator, replay

    model = model_of(journal, model)
    with (
        loading_bar(model or "the demo model") as progress,
        load_generator(journal, model=model, machine=machine, progress=progress, adapters=adapters) as generator,
    ):
        return replay(journal, generator=generator).verdict
