"""phasewalk run: generate text from a prompt and stream it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from phases.cli.driving import drive
from phases.cli.screen import check_new, loading_bar

SAMPLING, MODEL, OUTPUT = "Sampling (what is not given comes from the checkpoint)", "Model", "Output"
RECORD = "Record"


def run(
    prompt: Annotated[str | None, typer.Argument(help="What to say to the model; read from stdin if piped.")] = None,
    messages: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='A chat as JSON: [{"role": "user", "content": "..."}, ...].', exists=True,
                     dir_okay=False),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it stands, untemplated.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="A checkpoint folder or Hugging Face hub id.", show_default="the bundled demo model",
                     rich_help_panel=MODEL),
    ] = None,
    engine: Annotated[str, typer.Option(help="Which engine computes.", rich_help_panel=MODEL)] = "auto",
    capacity: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens that prompt and output may have together.", rich_help_panel=MODEL),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 is greedy.", rich_help_panel=SAMPLING)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Draw among the k likeliest tokens; 0 is off.", rich_help_panel=SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Draw among the likeliest that reach this mass; 1 is off.",
                     rich_help_panel=SAMPLING),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Draw among those this likely beside the likeliest; 0 is off.",
                     rich_help_panel=SAMPLING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same text.", rich_help_panel=SAMPLING)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="End after so many tokens.", rich_help_panel=SAMPLING)
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Also tell speed and share of memory bandwidth.", rich_help_panel=OUTPUT)
    ] = False,
    phases: Annotated[
        bool, typer.Option("--phases", help="Show the phases as they pass.", rich_help_panel=OUTPUT)
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record the run here, for phasewalk replay.", rich_help_panel=RECORD),
    ] = None,
    journal_sync: Annotated[
        bool, typer.Option("--journal-sync", help="Wait for the disk at every chunk.", rich_help_panel=RECORD)
    ] = False,
    journal_optional: Annotated[
        bool,
        typer.Option("--journal-optional", help="If the journal cannot be written (a full disk, say), go on without.",
                     rich_help_panel=RECORD),
    ] = False,
    digest_every: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Also record a digest of every N-th logits; 0 is off.",
                     rich_help_panel=RECORD),
    ] = 0,
    snapshot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ctrl-C pauses and saves the run here, for phasewalk resume.",
                     rich_help_panel=RECORD),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:  # fmt: skip
    """Generate text and stream it.

    phasewalk run "Tell me a story about a fox."

    phasewalk run "What does Prefill do?" --phases --stats

    echo "Count from 3 to 9" | phasewalk run --temperature 0

    phasewalk run "Hello" --journal hello.jsonl; phasewalk replay hello.jsonl
    """
    from gpu import engines
    from phases.errors import RequestError
    from phases.generator import Generator
    from phases.request import SamplingParams
    from statemachine import JournalWriter

    if engine not in ("auto", *engines()):
        raise typer.BadParameter(f"there is no engine {engine!r}; engines: auto, {', '.join(engines())}")
    x = _input(prompt, messages, raw=raw)
    try:
        params = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens
        )
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error
    check_new(journal, "--journal")
    with loading_bar(model or "the demo model") as progress:
        generator = Generator.from_pretrained(model, engine, max_batch=1, capacity=capacity, progress=progress)
    with generator:
        writer = (
            JournalWriter(journal, sync=journal_sync, on_full="drop" if journal_optional else "fail")
            if journal
            else None
        )
        run = generator.start(x, params, journal=writer, digest_every=digest_every)
        drive(generator, run, snapshot=snapshot, stats=stats, phases=phases, as_json=as_json)


def _input(prompt: str | None, messages: Path | None, *, raw: bool) -> Any:
    """What the user wants continued, wherever it came from."""
    from phases.request import RowRequest

    if messages is not None:
        if prompt is not None or raw:
            raise typer.BadParameter("--messages stands for the prompt: give no PROMPT and no --raw beside it")
        try:
            value = json.loads(messages.read_text(encoding="utf-8"))
        except ValueError as error:
            raise typer.BadParameter(f"{messages} is not JSON: {error}", param_hint="--messages") from error
        if not isinstance(value, list) or not value:
            raise typer.BadParameter(
                f'{messages} holds no chat: expected [{{"role": "user", "content": "..."}}, ...]',
                param_hint="--messages",
            )
        return RowRequest(messages=tuple(value))
    if prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise typer.BadParameter('nothing to say: give a prompt, as in phasewalk run "Hello", or pipe one in')
        prompt = sys.stdin.read().removesuffix("\n")
    return RowRequest(prompt=prompt, raw=raw)
