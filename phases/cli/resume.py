"""phasewalk resume: go on with a run that was saved."""

from pathlib import Path
from typing import Annotated

import typer

from phases.cli.driving import drive
from phases.cli.files import check_new, check_snapshot, readable_file
from phases.cli.recorded_model import model_of
from phases.cli.screen import loading_bar


def resume(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What run --snapshot saved.", exists=True, dir_okay=False,
                       callback=readable_file),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Where the checkpoint is now.", show_default="where it was when the run was saved"),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Also tell speed and share of memory bandwidth.")] = False,
    phases: Annotated[bool, typer.Option("--phases", help="Show the phases as they pass.")] = False,
    journal: Annotated[Path | None, typer.Option(metavar="FILE", help="Record the whole run here.")] = None,
    snapshot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where Ctrl-C saves it again.", show_default="FILE itself")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --snapshot replace another file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:  # fmt: skip
    """Go on with a run that was paused and saved, here or on another machine.

    phasewalk run "Tell me a story about a fox." --snapshot fox.snap   (then Ctrl-C)

    phasewalk resume fox.snap
    """
    from phases.replay import load_generator
    from statemachine.record.snapshot import load

    check_new(journal, "--journal")
    check_snapshot(snapshot or path, force=force, resumed=path, journal=journal)
    saved = load(path)
    model = model_of(saved.journal, model)
    with loading_bar(model or "the demo model") as progress:
        generator = load_generator(saved.journal, model=model, progress=progress)
    with generator:
        run = generator.resume(saved, journal=journal)
        drive(generator, run, snapshot=snapshot or path, stats=stats, phases=phases, as_json=as_json)
