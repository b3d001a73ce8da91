"""phasewalk replay: run a journal again and compare, play it without a model, or go on from a step of it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli.screen import check_new, loading_bar, stderr, step_counter

if TYPE_CHECKING:
    from phases.generator import Generator
    from phases.replay import Replay

DIVERGED = 3


class Mode(StrEnum):
    VERIFY = "verify"
    PLAY = "play"
    FORK = "fork"


def replay(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="A journal, or a folder of journals (*.jsonl) to verify.", exists=True),
    ],
    mode: Annotated[
        Mode,
        typer.Option(help="verify: run it again and compare. play: apply the record, no model needed. "
                          "fork: play up to a step, then go on live."),
    ] = Mode.VERIFY,
    at: Annotated[
        int | None,
        typer.Option(min=0, metavar="STEP", help="play and fork: stop before this step.", show_default="the end"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the checkpoint is now.", show_default="where it was when recorded")
    ] = None,
    journal: Annotated[Path | None, typer.Option(metavar="FILE", help="fork: record the new run here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (a line for each journal).")] = False,
) -> None:  # fmt: skip
    """Replay a recorded run.

    Exit status: 0 the same, 3 it diverged, 1 the journal or the model cannot be used. For git bisect run.

    phasewalk run "Count from 3 to 9" --journal count.jsonl

    phasewalk replay count.jsonl

    phasewalk replay count.jsonl --mode play --at 20
    """
    if path.is_dir():
        if mode is not Mode.VERIFY:
            raise typer.BadParameter("a folder of journals can only be verified", param_hint="--mode")
        _verify_all(path, model, as_json=as_json)
        return
    if mode is Mode.VERIFY and at is not None:
        raise typer.BadParameter("verify goes to the end; --at is for play and fork", param_hint="--at")
    if mode is not Mode.FORK and journal is not None:
        raise typer.BadParameter("only a fork makes a new run that could be recorded", param_hint="--journal")
    check_new(journal, "--journal")
    generator = None if mode is Mode.PLAY else _load(path, model)
    done = _replay(path, mode, generator, at=at, new_journal=journal)
    if mode is Mode.FORK and done.divergence is None:
        from phases.cli.driving import drive

        assert generator is not None
        drive(generator, done.run, as_json=as_json)
        return
    if as_json:
        typer.echo(json.dumps(_as_json(path, done, generator), ensure_ascii=False))
    else:
        _print(path, mode, done, generator)
    if done.divergence:
        raise typer.Exit(DIVERGED)


def _load(path: Path, model: str | None) -> "Generator":
    from phases.replay import load_generator
    from statemachine import Journal

    opened = Journal.open(path)
    with loading_bar(model or str(opened.header.environment.get("source"))) as progress:
        return load_generator(opened, model=model, progress=progress)


def _replay(path: Path, mode: Mode, generator: "Generator | None", **options: Any) -> "Replay":
    from phases.replay import replay as replayed

    with step_counter(str(path)) as watch:
        return replayed(path, mode.value, generator=generator, watch=watch, **options)


def _print(path: Path, mode: Mode, done: "Replay", generator: "Generator | None") -> None:
    if done.divergence:
        typer.echo(done.divergence.report(lambda phase, outcome: _words(generator, phase, outcome)))
        return
    run = done.run
    for row, text in enumerate(run.context.output_texts):
        if mode is Mode.PLAY:
            typer.echo(text if len(run.context.slots) == 1 else f"[row {row}] {text}")
    seconds = sum(step.elapsed_ns for step in run.steps()) / 1e9
    verb = "verified" if mode is Mode.VERIFY else "played"
    stderr().print(f"{path}: {verb}, {run.step_count} steps, {run.status} ({seconds:.2f} s of work)", markup=False)
    if done.journal.torn:
        stderr().print(f"its last line was never finished ({done.journal.torn} bytes, not read)", style="yellow")


def _words(generator: "Generator | None", phase: str, outcome: Any) -> str:
    """What tokens say, where the outcome is tokens."""
    if generator is None or phase not in ("sample", "check_stop") or not isinstance(outcome, list):
        return ""
    return " ".join(repr(generator.tokenizer.decode([token])) for token in outcome)


def _as_json(path: Path, done: "Replay", generator: "Generator | None" = None) -> dict[str, Any]:
    divergence = done.divergence.to_json() if done.divergence else None
    if divergence and divergence["field"] == "outcome":
        for side in ("recorded", "replayed"):
            divergence[f"{side}_text"] = _words(generator, divergence["phase"], divergence[side])
    return {
        "journal": str(path),
        "diverged": done.divergence is not None,
        "divergence": divergence,
        "steps": done.run.step_count,
        "status": str(done.run.status),
        "output_ids": done.run.context.output_ids,
        "output_texts": done.run.context.output_texts,
        "torn_bytes": done.journal.torn,
    }


def _verify_all(folder: Path, model: str | None, *, as_json: bool) -> None:
    """Verify every journal of a folder; one model is loaded for all journals that were recorded alike."""
    from rich.console import Console
    from rich.table import Table

    from phases.replay import loaded_as
    from statemachine import Journal, JournalError

    paths = sorted(folder.rglob("*.jsonl"))
    if not paths:
        raise typer.BadParameter(f"{folder} holds no journal (*.jsonl)", param_hint="FILE|DIR")
    table = Table("journal", "steps", "result", "where")
    generators: dict[str, Generator] = {}
    worst = 0
    for path in paths:
        try:
            key = loaded_as(Journal.open(path), model)
            if key not in generators:
                generators[key] = _load(path, model)
            done = _replay(path, Mode.VERIFY, generators[key])
            done.run.close()
        except (JournalError, ValueError, OSError) as error:
            worst = worst or 1
            table.add_row(str(path), "", "[red]unusable[/]", str(error))
            if as_json:
                typer.echo(json.dumps({"journal": str(path), "error": str(error)}))
            continue
        if as_json:
            typer.echo(json.dumps(_as_json(path, done, generators[key]), ensure_ascii=False))
        where = ""
        if done.divergence:
            worst = DIVERGED
            where = f"step {done.divergence.step}, {done.divergence.phase}: {done.divergence.field}"
        table.add_row(str(path), str(done.run.step_count), "[red]diverged[/]" if where else "[green]the same[/]", where)
    if not as_json:
        Console(highlight=False).print(table)
    if worst:
        raise typer.Exit(worst)
