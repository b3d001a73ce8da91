"""phasewalk run: generate text from a prompt and stream it."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli.screen import loading_bar, stderr

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.generator import Generator
    from phases.request import GenerationResult
    from statemachine import Run

SAMPLING, MODEL, OUTPUT = "Sampling (what is not given comes from the checkpoint)", "Model", "Output"


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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:  # fmt: skip
    """Generate text and stream it.

    phasewalk run "Tell me a story about a fox."

    phasewalk run "What does Prefill do?" --phases --stats

    echo "Count from 3 to 9" | phasewalk run --temperature 0
    """
    from gpu import engines
    from phases.errors import RequestError
    from phases.generator import Generator
    from phases.request import SamplingParams

    if engine not in ("auto", *engines()):
        raise typer.BadParameter(f"there is no engine {engine!r}; engines: auto, {', '.join(engines())}")
    x = _input(prompt, messages, raw=raw)
    try:
        params = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens
        )
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error
    with loading_bar(model or "the demo model") as progress:
        generator = Generator.from_pretrained(model, engine, max_batch=1, capacity=capacity, progress=progress)
    with generator:
        run = generator.start(x, params)
        _cancel_on_interrupt(run)
        _show(generator, run, quiet=as_json, phases=phases)
        result = generator.result(run)
        if as_json:
            typer.echo(json.dumps(_as_json(generator, run, result, stats=stats), ensure_ascii=False))
        elif stats:
            _print_stats(_stats(generator, result))
    if run.status == "cancelled":
        stderr().print("cancelled", style="yellow")
        raise typer.Exit(1)


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


def _cancel_on_interrupt(run: "Run[Generation]") -> None:
    """Ctrl-C cancels the run at the next boundary; a second one kills the program as usual."""

    def cancel(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not run.status.ended:
            run.signal("cancel")

    signal.signal(signal.SIGINT, cancel)


def _show(generator: "Generator", run: "Run[Generation]", *, quiet: bool, phases: bool) -> None:
    """Drive the run and print its text as it comes, or its phases and then its text."""
    if phases:
        from phases.cli.passing import PassingPhases

        watch = PassingPhases(generator, stderr()).show
        text = "".join(generator.pieces(run, on_step=watch))
        if not quiet:
            typer.echo(text)
        return
    for piece in generator.pieces(run):
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not quiet:
        sys.stdout.write("\n")


def _stats(generator: "Generator", result: "GenerationResult") -> dict[str, float]:
    """Speed as people compare it; a token's bytes are the weights and, halfway, the cache."""
    from gpu import measure_read_bandwidth

    weights, cache = generator.engine.bytes_per_token(()), generator.engine.kv_cache
    read = weights + cache.bytes_per_position * (result.prompt_tokens[0] + result.output_tokens[0] / 2)
    speed = 1 / result.time_per_token if result.time_per_token else 0.0
    bandwidth = measure_read_bandwidth()
    return {
        "time_to_first_token_s": result.time_to_first_token,
        "tokens_per_s": speed,
        "bytes_per_token": read,
        "bytes_per_s": read * speed,
        "bandwidth_bytes_per_s": bandwidth,
        "bandwidth_share": read * speed / bandwidth,
    }


def _print_stats(stats: dict[str, float]) -> None:
    stderr().print(
        f"first token after {stats['time_to_first_token_s'] * 1e3:.1f} ms · {stats['tokens_per_s']:.0f} tokens/s · "
        f"{stats['bytes_per_token'] / 1e6:.1f} MB/token · {stats['bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{stats['bandwidth_share']:.0%} of this machine's {stats['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s "
        f"(read, one thread, measured now)",
        style="dim",
        soft_wrap=True,
    )


def _as_json(
    generator: "Generator", run: "Run[Generation]", result: "GenerationResult", *, stats: bool
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "text": result.text,
        "output_ids": result.output_ids[0],
        "finish_reason": result.finish_reasons[0],
        "prompt_tokens": result.prompt_tokens[0],
        "output_tokens": result.output_tokens[0],
        "time_to_first_token_s": result.time_to_first_token,
        "time_per_token_s": result.time_per_token,
        "seed": run.context.request.requests[0].params.seed,
        "engine": generator.engine.name,
    }
    return value | {"stats": _stats(generator, result)} if stats else value
