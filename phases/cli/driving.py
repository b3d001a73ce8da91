"""Drives a run for somebody at a terminal: prints its text or phases, heeds Ctrl-C, and tells the figures."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from phases.cli.process import FAILED, INTERRUPTED
from phases.cli.screen import print_json, stderr, warn
from phases.printable import printable
from phases.views import logprobs

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.generator import Generator
    from phases.request import GenerationResult
    from statemachine import Run


def drive(
    generator: "Generator",
    run: "Run[Generation]",
    *,
    snapshot: Path | None = None,
    stats: bool = False,
    phases: bool = False,
    as_json: bool = False,
) -> None:
    """Drive a run to its end and print what was asked for; exits with status 130 if Ctrl-C cancelled it.

    With status 1 if rows of it failed, while others did not.
    """
    _heed_interrupt(run, pause=snapshot is not None)
    _show(generator, run, quiet=as_json, phases=phases)
    result = generator.result(run)
    if as_json:
        print_json(_as_json(generator, run, result, stats=stats))
    else:
        for line in logprobs.lines(generator.tokenizer, result):
            stderr().print(printable(line), markup=False, highlight=False, soft_wrap=True)
        if stats:
            _print_stats(_stats(generator, result))
    if run.status == "paused" and snapshot is not None:
        run.snapshot(snapshot)
        command = f"phasewalk resume {shlex.quote(str(snapshot))}"
        stderr().print(f"paused and saved; go on with:  {command}", style="yellow", markup=False, soft_wrap=True)
    failed = [row for row, error in enumerate(result.errors) if error is not None]
    for row in failed:
        warn(f"row {row} failed: {result.errors[row]}")
    if run.status == "cancelled":
        stderr().print("cancelled", style="yellow")
        raise typer.Exit(INTERRUPTED)
    if failed:
        raise typer.Exit(FAILED)


def _heed_interrupt(run: "Run[Generation]", *, pause: bool) -> None:
    """Ctrl-C cancels or pauses the run at the next boundary; a second one kills the program as usual."""

    usual = signal.getsignal(signal.SIGINT)

    def heed(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, usual if callable(usual) else signal.default_int_handler)
        if run.status.ended:
            return
        if pause:
            run.pause()
        else:
            run.signal("cancel")

    signal.signal(signal.SIGINT, heed)


def _show(generator: "Generator", run: "Run[Generation]", *, quiet: bool, phases: bool) -> None:
    """Drive the run and print its text as it comes, or its phases and then its text; to a pipe exactly as it is."""
    shown = printable if sys.stdout.isatty() else str
    streams = not quiet and not phases and len(run.context.slots) == 1  # the rows of a batch would mingle
    on_step = None
    if phases:
        from phases.cli.passing import PassingPhases

        on_step = PassingPhases(generator, run, stderr()).show
    for piece in generator.pieces(run, on_step=on_step, whole=True):
        if streams:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
    if streams:
        print()
    elif not quiet:
        for text in by_row(generator.result(run).output_texts):
            print(shown(text))


def by_row(texts: Sequence[str]) -> list[str]:
    """What to print of the texts of all rows: which is whose is only told where there are several."""
    return list(texts) if len(texts) == 1 else [f"[row {row}] {text}" for row, text in enumerate(texts)]


def _stats(generator: "Generator", result: "GenerationResult") -> dict[str, Any]:
    """Speed as people compare it; a token's bytes are the weights and, halfway, the cache."""
    from gpu import HostEngine, measure_read_bandwidth

    weights, cache = generator.engine.bytes_per_token(()), generator.engine.kv_cache
    read = weights + cache.bytes_per_position * (result.prompt_tokens[0] + result.output_tokens[0] / 2)
    speed = 1 / result.time_per_token if result.time_per_token else 0.0
    stats: dict[str, Any] = {
        "prompt_tokens": sum(result.prompt_tokens),
        "reused_tokens": sum(result.reused_tokens),
        "computed_tokens": sum(result.computed_tokens),
        "time_to_first_token_s": result.time_to_first_token,
        "tokens_per_s": speed,
        "bytes_per_token": read,
        "bytes_per_s": read * speed,
    }
    if isinstance(generator.engine, HostEngine):  # a device reads memory of its own
        bandwidth = measure_read_bandwidth()
        stats |= {"bandwidth_bytes_per_s": bandwidth, "bandwidth_share": read * speed / bandwidth}
    return stats | {"engine": generator.engine.facts()}


def _print_stats(stats: dict[str, Any]) -> None:
    words = (
        f"{stats['prompt_tokens']} prompt tokens, {stats['reused_tokens']} of them from a cache · "
        f"first token after {stats['time_to_first_token_s'] * 1e3:.1f} ms · {stats['tokens_per_s']:.0f} tokens/s · "
        f"{stats['bytes_per_token'] / 1e6:.1f} MB/token · {stats['bytes_per_s'] / 1e9:.1f} GB/s"
    )
    if "bandwidth_share" in stats:
        words += (
            f", {stats['bandwidth_share']:.0%} of this machine's {stats['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s "
            f"(read, one thread, measured now)"
        )
    for name, fact in stats["engine"].items():
        words += f" · {name} {fact}"
    stderr().print(words, style="dim", markup=False, soft_wrap=True)


def _as_json(
    generator: "Generator", run: "Run[Generation]", result: "GenerationResult", *, stats: bool
) -> dict[str, Any]:
    """What was generated; of a batch, a list of that."""
    rows = [
        {
            "text": text,
            "output_ids": result.output_ids[row],
            "finish_reason": result.finish_reasons[row],
            **({} if result.errors[row] is None else {"error": result.errors[row]}),
            "prompt_tokens": result.prompt_tokens[row],
            "reused_tokens": result.reused_tokens[row],
            "output_tokens": result.output_tokens[row],
            **logprobs.as_json(generator.tokenizer, result, row),
            "seed": run.context.request.requests[row].params.seed,
        }
        for row, text in enumerate(result.output_texts)
    ]
    value: dict[str, Any] = {
        **(rows[0] if len(rows) == 1 else {"rows": rows}),
        "time_to_first_token_s": result.time_to_first_token,
        "time_per_token_s": result.time_per_token,
        "engine": generator.engine.name,
    }
    return value | {"stats": _stats(generator, result)} if stats else value
