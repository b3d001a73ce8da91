"""phasewalk resume: go on with a run that was saved."""

from pathlib import Path
from typing import Annotated

import typer

from phases.cli import options
from phases.cli.driving import drive
from phases.cli.files import check_new, check_snapshot, is_journal, readable_file
from phases.cli.recorded_model import model_of, tell_of_lacking_phases
from phases.cli.screen import loading_bar
from phases.cli.target import MachineOption, generating_machine


def resume(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What run --snapshot saved, or the journal of a run that was killed.",
                       exists=True, dir_okay=False, callback=readable_file),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Where the checkpoint is now.", show_default="where it was when the run was saved"),
    ] = None,
    lora: options.RecordedLora = None,
    machine: MachineOption = None,
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

    A journal whose run was killed is gone on with in the same file; no finished step runs again.

    phasewalk resume fox.jsonl
    """
    from phases.replay import load_generator
    from statemachine import Journal
    from statemachine.record.snapshot import load

    generating = generating_machine(machine)
    check_new(journal, "--journal")
    saved = None if is_journal(path) else load(path)
    if saved is None and journal is not None:
        raise typer.BadParameter("a journal is gone on with in its own file", param_hint="--journal")
    if saved is not None and snapshot is None:
        snapshot = path
    if snapshot is not None:
        check_snapshot(snapshot, force=force, resumed=path if saved else None, journal=journal if saved else path)
    record = saved.journal if saved else Journal.open(path)
    tell_of_lacking_phases(record, generating)
    model = model_of(record, model)
    with loading_bar(model or "the demo model") as progress:
        generator = load_generator(
            record, model=model, machine=generating, progress=progress, adapters=options.adapters_of(lora or ())
        )
    with generator:
        run = generator.resume(saved, journal=journal) if saved else generator.recover(path)
        drive(generator, run, snapshot=snapshot, stats=stats, phases=phases, as_json=as_json)
