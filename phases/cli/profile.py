"""phasewalk profile: where the time of a decode step goes on this machine."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from phases.cli import options
from phases.cli.screen import loading_bar, print_json, stderr, stdout

if TYPE_CHECKING:
    from gpu import DeviceProfile, KeyNumber, Pass
    from phases.views.profile import Profile

PROMPT = "Tell me a story about a fox."


def profile(
    prompt: Annotated[str, typer.Argument(help="What the measured generations continue.")] = PROMPT,
    model: options.Model = None,
    engine: options.Engine = "auto",
    decode: options.Decode = None,
    quantize: options.Quantize = options.Quantization.NONE,
    export: options.Export = None,
    plan: options.Plan = None,
    tokens: Annotated[int, typer.Option(min=3, help="Tokens of each generation.")] = 100,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step, in the tables of a device.")] = 1,
    context: Annotated[int, typer.Option(min=1, help="Tokens that each row holds there.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; times in ns.")] = False,
) -> None:
    """Measure where the time of a decode step goes, and the key numbers of this machine.

    phasewalk profile

    A decode step is Sample, Decode and CheckStop of one row. Its parts:

    context update: lengths, tokens and reasons are entered on the host (apply of the three phases).

    binding: which rows go on, and where they are; the buffers themselves were bound once, at load.

    engine: the model, one token. Below it, indented, its own functions, from a separate pass under cProfile.

    sampling: the next token is drawn, and reaches the host. (With an engine that works on while the host goes on,
    engine is the launch alone, and the wait for the work stands here.)

    KV commit: the token's keys and values are counted as written.

    machine: three steps of the state machine: loop, guards, transitions, the record in memory.

    The parts come from real generations with stopwatches in them; what these cost is measured and taken off. The step
    without any stopwatch is told beside their sum. The middle column is the median, so it need not add up exactly.

    An engine that computes on a device adds tables by the clock of that: the parts of a step launched as a graph and
    kernel by kernel; each kernel of a step and of a prefill, and the phases of a kernel that does all of a step, with
    the bytes that it must move and the share of the bandwidth measured in the same run; key numbers of the device. In
    "time" a kernel follows itself, in "alone" it begins when the one before has ended.

    The key numbers are the fastest of several tries, each the work of one: a machine step, a guard, and so on.
    """
    from phases.generator import Generator
    from phases.views.profile import profile as measure

    options.check_engine(engine)
    engine = options.choose_engine(engine, model, decode=decode, quantize=[quantize], export=export, plan=plan)
    with (
        loading_bar(model or "the demo model") as progress,
        Generator.from_pretrained(
            model,
            engine,
            max_batch=rows,
            progress=progress,
            decode=decode,
            quantize=quantize.option,
            export=export,
            plan=plan,
        ) as generator,
    ):
        measured = measure(generator, prompt, tokens=tokens, rows=rows, context=context)
        name = generator.engine.name
        how = f"{name}, {quantize} weights" if quantize.option else name
    if measured.steps < tokens - 1:
        stderr().print(f"the capacity ended the generations after {measured.steps + 1} tokens", style="yellow")
    if as_json:
        print_json({"engine": name, "quantize": quantize.option, **asdict(measured)})
    else:
        _print(measured, how)


def _print(measured: "Profile", engine: str) -> None:
    from rich.table import Table

    from statemachine.views.tally import duration

    console = stdout()
    parts = Table("decode step", title=f"{measured.steps} decode steps, engine {engine}", title_justify="left")
    for column in ("median", "p95", "share"):
        parts.add_column(column, justify="right")
    parts.add_column("what it is")
    for part in measured.parts:
        parts.add_row(part.name, duration(part.median_ns), duration(part.p95_ns), f"{part.share:.1%}", part.what)
        for inner in measured.engine_parts if part.name == "engine" else ():
            parts.add_row(f"  {inner.name}", duration(inner.median_ns), "", f"{inner.share * part.share:.1%}", "",
                          style="dim")  # fmt: skip
    parts.add_section()
    parts.add_row("all of it", duration(measured.step_ns), "", "100%", "with stopwatches, their cost taken off")
    parts.add_row("without stopwatches", duration(measured.plain_step_ns), "", "",
                  f"the stopwatches cost {duration(measured.stopwatch_ns)}")  # fmt: skip
    console.print(parts)
    _print_numbers(measured.key_numbers, "on this machine")
    if measured.device is not None:
        print_device(measured.device)


def print_device(measured: "DeviceProfile") -> None:
    """Print the tables of a device."""
    from rich.table import Table

    from statemachine.views.tally import duration

    title = f"on {measured.device}; rows: {measured.rows}, tokens of each: {measured.context}"
    parts = Table("decode step", title=title, title_justify="left")
    for column in ("graph", "kernel by kernel", "host"):
        parts.add_column(column, justify="right")
    parts.add_column("what it is")
    for part in measured.parts:
        times = [duration(value) if value is not None else "" for value in (part.graph_ns, part.plain_ns, part.host_ns)]
        parts.add_row(part.name, *times, part.what)
    stdout().print(parts)
    for each in measured.passes:
        _print_pass(each, measured.read_bandwidth)
    _print_numbers(measured.key_numbers, f"on {measured.device}")


def _print_pass(measured: "Pass", bandwidth: float) -> None:
    from rich.table import Table

    from statemachine.views.tally import duration

    table = Table("kernel", title=measured.name, title_justify="left")
    for column in ("launches", "time", "each", "alone", "MB", "GB/s", f"of {bandwidth / 1e9:.4g} GB/s"):
        table.add_column(column, justify="right")

    def rate(size: int | None, spent: float) -> tuple[str, str, str]:
        if size is None or not spent:
            return "", "", ""
        return f"{size / 1e6:.2f}", f"{size / spent:.4g}", f"{size / spent * 1e9 / bandwidth:.0%}"

    for work in measured.works:
        alone = duration(work.apart_ns / work.launches) if work.apart_ns is not None else ""
        table.add_row(
            work.name, f"{work.launches}", duration(work.time_ns), duration(work.time_ns / work.launches), alone,
            *rate(work.bytes, work.time_ns),
        )  # fmt: skip
    table.add_section()
    size = sum(work.bytes or 0 for work in measured.works)
    table.add_row("all of it, in one graph", "", duration(measured.time_ns), "", "", *rate(size, measured.time_ns))
    stdout().print(table)


def _print_numbers(measured: "Sequence[KeyNumber]", title: str) -> None:
    from rich.table import Table

    from statemachine.views.tally import duration

    numbers = Table("key number", title=title, title_justify="left")
    numbers.add_column("", justify="right")
    numbers.add_column("what it is")
    for number in measured:
        value = duration(number.value) if number.unit == "ns" else f"{number.value:.1f} {number.unit}"
        numbers.add_row(number.name, value, number.what)
    stdout().print(numbers)
