"""phasewalk profile: where the time of a decode step goes on this machine."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from phases.cli.options import check_engine
from phases.cli.screen import loading_bar, print_json, stderr, stdout

if TYPE_CHECKING:
    from phases.views.profile import Profile

PROMPT = "Tell me a story about a fox."


def profile(
    prompt: Annotated[str, typer.Argument(help="What the measured generations continue.")] = PROMPT,
    model: Annotated[
        str | None,
        typer.Option(help="A checkpoint folder or Hugging Face hub id.", show_default="the bundled demo model"),
    ] = None,
    engine: Annotated[str, typer.Option(help="Which engine computes.")] = "auto",
    tokens: Annotated[int, typer.Option(min=3, help="Tokens of each generation.")] = 100,
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

    The key numbers are the fastest of several tries, each the work of one: a machine step, a guard, and so on.
    """
    from phases.generator import Generator
    from phases.views.profile import profile as measure

    check_engine(engine)
    with (
        loading_bar(model or "the demo model") as progress,
        Generator.from_pretrained(model, engine, max_batch=1, progress=progress) as generator,
    ):
        measured = measure(generator, prompt, tokens=tokens)
        name = generator.engine.name
    if measured.steps < tokens - 1:
        stderr().print(f"the capacity ended the generations after {measured.steps + 1} tokens", style="yellow")
    if as_json:
        print_json({"engine": name, **asdict(measured)})
    else:
        _print(measured, name)


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
    numbers = Table("key number", title="on this machine", title_justify="left")
    numbers.add_column("", justify="right")
    numbers.add_column("what it is")
    for number in measured.key_numbers:
        value = duration(number.value) if number.unit == "ns" else f"{number.value:.1f} {number.unit}"
        numbers.add_row(number.name, value, number.what)
    console.print(numbers)
