"""phasewalk replay: run a journal again and compare, play it without a model, or go on from a step of it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli import options
from phases.cli.files import check_new, readable_file, readable_file_or_folder
from phases.cli.process import DIVERGED, FAILED, INCOMPLETE
from phases.cli.recorded_model import model_of, tell_of_lacking_phases
from phases.cli.screen import loading_bar, print_json, shown, stderr, stdout, step_counter, told, warn
from phases.cli.target import MachineOption, generating_machine
from phases.printable import printable

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.generator import Generator
    from phases.lora import Adapters
    from phases.replay import Replay
    from statemachine import Journal, Machine, Verdict


class Mode(StrEnum):
    VERIFY = "verify"
    PLAY = "play"
    FORK = "fork"


def replay(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="A journal, or a folder of journals (*.jsonl) to verify.", exists=True,
                       callback=readable_file_or_folder),
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
    lora: options.RecordedLora = None,
    machine: MachineOption = None,
    journal: Annotated[Path | None, typer.Option(metavar="FILE", help="fork: record the new run here.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="verify: what differs in the header counts as a divergence.")
    ] = False,
    edited: Annotated[
        bool, typer.Option("--edited", help="Pass over the checksums of a journal that was edited by hand.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (a line for each journal).")] = False,
) -> None:  # fmt: skip
    """Replay a recorded run.

    Exit status: 0 verified to its end, 3 it diverged, 4 it is the same as far as it goes, but incomplete (the run was
    paused or killed), 1 the journal or the model cannot be used. For git bisect run.

    phasewalk run "Count from 3 to 9" --journal count.jsonl

    phasewalk replay count.jsonl

    phasewalk replay count.jsonl --mode play --at 20
    """
    generating, adapters = generating_machine(machine), options.adapters_of(lora or ())
    if path.is_dir():
        if mode is not Mode.VERIFY:
            raise typer.BadParameter("a folder of journals can only be verified", param_hint="--mode")
        _verify_all(path, model, generating, adapters, as_json=as_json, strict=strict, chained=not edited)
        return
    if mode is Mode.VERIFY and at is not None:
        raise typer.BadParameter("verify goes to the end; --at is for play and fork", param_hint="--at")
    if mode is not Mode.FORK and journal is not None:
        raise typer.BadParameter("only a fork makes a new run that could be recorded", param_hint="--journal")
    if strict and mode is not Mode.VERIFY:
        raise typer.BadParameter("only verify compares headers", param_hint="--strict")
    check_new(journal, "--journal")
    opened = _open(path, chained=not edited)
    tell_of_lacking_phases(opened, generating)
    if at is not None:
        _check_step(opened, at)
    generator = None if mode is Mode.PLAY else _load(opened, model, generating, adapters)
    done = _replay(opened, mode, generator, at=at, new_journal=journal, machine=generating)
    if mode is Mode.FORK and done.divergence is None:
        from phases.cli.driving import drive

        assert generator is not None
        drive(generator, done.run, as_json=as_json)
        return
    if as_json:
        print_json(_as_json(path, done, generator))
    else:
        _print(path, mode, done, generator)
    if status := _status(done, strict=strict):
        raise typer.Exit(status)


def _status(done: "Replay", *, strict: bool) -> int:
    """The exit status that a replay comes to."""
    if done.divergence or (strict and done.verdict and done.verdict.differences):
        return DIVERGED
    return INCOMPLETE if done.verdict and not done.verdict.complete else 0


def _open(path: Path, *, chained: bool) -> "Journal":
    from statemachine import Journal

    return Journal.open(path, chained=chained)


def _check_step(journal: "Journal", at: int) -> None:
    """Refuse a step that the record does not reach."""
    from statemachine.record.records import StepRecord

    first, count = journal.header.first, 0
    count = first + sum(isinstance(record, StepRecord) for record in journal.timeline())
    if not first <= at <= count:
        raise typer.BadParameter(
            f"{journal.path} has {count} steps, so STEP is from {first} to {count}", param_hint="--at"
        )


def _load(journal: "Journal", model: str | None, machine: "Machine[Generation]", adapters: "Adapters") -> "Generator":
    from phases.replay import load_generator

    model = model_of(journal, model)
    with loading_bar(model or "the demo model") as progress:
        return load_generator(journal, model=model, machine=machine, progress=progress, adapters=adapters)


def _replay(journal: "Journal", mode: Mode, generator: "Generator | None", **options: Any) -> "Replay":
    from phases.replay import replay as replayed

    with step_counter(str(journal.path)) as watch:
        return replayed(journal, mode.value, generator=generator, watch=watch, **options)


def _print(path: Path, mode: Mode, done: "Replay", generator: "Generator | None") -> None:
    if done.divergence:
        print(printable(done.divergence.report(lambda phase, outcome: _words(generator, phase, outcome))))
        return
    run = done.run
    if mode is Mode.PLAY:
        from phases.cli.driving import by_row

        for text in by_row(_texts(done)):
            print(printable(text))
    seconds = sum(step.elapsed_ns for step in run.steps()) / 1e9
    words = f"played, {run.step_count} steps, {run.status if run.status.ended else f'resting at {run.phase.name}'}"
    if done.verdict:
        words = _found(done.verdict)
    stderr().print(f"{path}: {words} ({seconds:.2f} s of work)", markup=False, soft_wrap=True)
    for note in _notes(done):
        warn(note)


def _found(verdict: "Verdict") -> str:
    """What came of running a journal again, in words."""
    if verdict.complete:
        return f"verified, {verdict.steps} steps, {verdict.ended}"
    where = f", paused at {verdict.paused_at}" if verdict.paused_at else ""
    where += f", broken off by {verdict.interrupted}" if verdict.interrupted else ""
    return f"incomplete: ends at step {verdict.ends_at}{where}; {verdict.steps} steps are the same"


def _notes(done: "Replay") -> list[str]:
    """What else should be known of a record and its replay."""
    notes, verdict = [], done.verdict
    if verdict and verdict.passed_over:
        notes.append(f"{verdict.passed_over} steps that the run went back from do not count, and were not compared")
    if verdict and verdict.differences and not verdict.divergence:
        notes.append(f"every step agrees, but note: {'; '.join(verdict.differences)}")
    if done.journal.torn:
        notes.append(f"its last line was never finished ({done.journal.torn} bytes, not read)")
    return notes


def _texts(done: "Replay") -> list[str]:
    """The text of each row, as far as it goes; token ids where no tokenizer is at hand."""
    context = done.run.context
    if context.output_texts:
        return context.output_texts
    from phases.views.token_text import TokenText

    text = TokenText.of(done.journal)
    if text.note:
        warn(text.note)
    kept = context.kept_text if text.tokenizer else [None] * len(context.output_ids)
    return [text.of_ids(ids)[:length] for ids, length in zip(context.output_ids, kept, strict=True)]


def _words(generator: "Generator | None", phase: str, outcome: Any) -> str:
    """What tokens say, where the outcome is tokens."""
    from phases.views.token_text import outcome_words

    return outcome_words(generator.tokenizer if generator else None, phase, outcome)


def _as_json(path: Path, done: "Replay", generator: "Generator | None" = None) -> dict[str, Any]:
    divergence = done.divergence.to_json() if done.divergence else None
    if divergence and divergence["field"] == "outcome":
        for side in ("recorded", "replayed"):
            divergence[f"{side}_text"] = _words(generator, divergence["phase"], divergence[side])
    return {
        "journal": str(path),
        "diverged": done.divergence is not None,
        "divergence": divergence,
        "complete": done.verdict.complete if done.verdict else None,
        "passed_over": done.verdict.passed_over if done.verdict else None,
        "differences": done.verdict.differences if done.verdict else None,
        "steps": done.run.step_count,
        "status": str(done.run.status),
        "output_ids": done.run.context.output_ids,
        "output_texts": done.run.context.output_texts,
        "torn_bytes": done.journal.torn,
    }


def _verify_all(
    folder: Path,
    model: str | None,
    machine: "Machine[Generation]",
    adapters: "Adapters",
    *,
    as_json: bool,
    strict: bool,
    chained: bool,
) -> None:
    """Verify every journal of a folder; one model is loaded for all journals that were recorded alike."""
    from rich.table import Column, Table

    from phases.replay import loaded_as

    paths = sorted(folder.rglob("*.jsonl"))
    if not paths:
        raise typer.BadParameter(f"{folder} holds no journal (*.jsonl)", param_hint="FILE|DIR")
    table = Table(Column("journal", overflow="fold"), "steps", "result", "where")
    generators: dict[str, Generator] = {}
    statuses = {0}
    for path in paths:
        try:
            readable_file(path)
            journal = _open(path, chained=chained)
            key = loaded_as(journal, model)
            if key not in generators:
                generators[key] = _load(journal, model, machine, adapters)
            done = _replay(journal, Mode.VERIFY, generators[key])
            done.run.close()
        except Exception as error:  # a record can hold anything, and break anything; the others are still verified
            statuses.add(FAILED)
            table.add_row(shown(str(path)), "", "[red]unusable[/]", shown(told(error)))
            if as_json:
                print_json({"journal": str(path), "error": told(error)})
            continue
        if as_json:
            print_json(_as_json(path, done, generators[key]))
        status = _status(done, strict=strict)
        statuses.add(status)
        result = {DIVERGED: "[red]diverged[/]", INCOMPLETE: "[yellow]incomplete[/]"}.get(status, "[green]verified[/]")
        table.add_row(shown(str(path)), str(done.run.step_count), result, shown("; ".join(_where(done))))
    if not as_json:
        stdout().print(table)
    if worst := next((status for status in (DIVERGED, FAILED, INCOMPLETE) if status in statuses), 0):
        raise typer.Exit(worst)


def _where(done: "Replay") -> list[str]:
    """What a row of the table says beside its result."""
    if done.divergence:
        return [f"step {done.divergence.step}, {done.divergence.phase}: {done.divergence.field}"]
    incomplete = [_found(done.verdict)] if done.verdict and not done.verdict.complete else []
    return [*incomplete, *_notes(done)]
