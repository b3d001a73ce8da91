"""phasewalk step: the interactive debugger, on a full screen or in lines."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli import options
from phases.cli.files import check_new, readable_file
from phases.cli.process import FAILED
from phases.cli.recorded_model import tell_of_lacking_phases
from phases.cli.screen import loading_bar
from phases.cli.target import MachineOption, generating_machine

if TYPE_CHECKING:
    from phases.debugger.generation import GenerationSession

RUNS = 8  # that can stand side by side: forks and snapshots
SCREEN, PICTURE = "Screen", "Picture"


def step(
    prompt: Annotated[str | None, typer.Argument(help="What to say to the model.", show_default=False)] = None,
    messages: options.Messages = None,
    raw: options.Raw = False,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Open a recorded run instead; needs no model.", exists=True, dir_okay=False,
                     callback=readable_file),
    ] = None,
    model: options.Model = None,
    engine: options.Engine = "auto",
    decode: options.Decode = None,
    plan: options.Plan = None,
    quantize: options.Quantize = options.Quantization.NONE,
    export: options.Export = None,
    strict: options.Strict = False,
    capacity: options.Capacity = None,
    machine: MachineOption = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Commands and answers as lines; also where there is no terminal.",
                           rich_help_panel=SCREEN),
    ] = False,
    light: Annotated[
        bool, typer.Option("--light", help="Dark on light; d changes it.", rich_help_panel=SCREEN)
    ] = False,
    screenshot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Show nothing: press --keys, write a picture of the screen, end.",
                     rich_help_panel=PICTURE),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar='"KEY KEY ..."', help='Keys to press before the picture is made, as in "n n s left".',
                     rich_help_panel=PICTURE),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="COLUMNSxLINES", help="Of the screen in the picture.", show_default="120x40",
                     rich_help_panel=PICTURE),
    ] = None,
) -> None:  # fmt: skip
    """Step through a run: watch, stop, go back, change it, fork it.

    phasewalk step "Tell me a story about a fox."

    phasewalk step --journal hello.jsonl

    printf 'break if top1 < 0.3\\nrun\\ncandidates\\n' | phasewalk step "Hello" --plain --seed 1

    phasewalk step "Hello" --seed 1 --screenshot step.svg --keys "n n n s"
    """
    picture = _picture(screenshot, keys, size)
    if journal is not None:
        if prompt is not None or messages is not None or raw:
            raise typer.BadParameter("a journal holds its own prompt: give no other beside it", param_hint="--journal")
        from phases.debugger.generation import GenerationSession

        generating = generating_machine(machine)
        session = GenerationSession.recorded(journal, generating)
        assert session.record is not None
        tell_of_lacking_phases(session.record.journal, generating)
        _show(session, plain=plain, light=light, picture=picture)
        return
    from phases.debugger.generation import GenerationSession
    from phases.generator import Generator

    generating = generating_machine(machine)
    options.check_engine(engine)
    x = _input(prompt, messages, raw=raw)
    params = options.sampling_params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens
    )
    engine = options.choose_engine(engine, model, decode=decode, quantize=[quantize], export=export, plan=plan)
    with loading_bar(model or "the demo model") as progress:
        generator = Generator.from_pretrained(
            model, engine, max_batch=RUNS, capacity=capacity, strict=strict, progress=progress, decode=decode,
            quantize=quantize.option, export=export, plan=plan, machine=generating,
        )  # fmt: skip
    with generator:
        session = GenerationSession.live(generator, generator.start(x, params, keep=True))
        _show(session, plain=plain, light=light, picture=picture)


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be drawn: where to, after which keys, on a screen of which size."""

    path: Path
    keys: tuple[str, ...]
    size: tuple[int, int]


def _show(session: "GenerationSession", *, plain: bool, light: bool, picture: Picture | None) -> None:
    try:
        if picture is not None:
            from phases.debugger.screen import picture as draw

            draw(session, picture.path, picture.keys, picture.size, light=light)
        elif plain or not _has_terminal():
            from phases.debugger.plain import converse

            if converse(session, sys.stdin, sys.stdout) and not sys.stdin.isatty():
                raise typer.Exit(FAILED)
        else:
            from phases.debugger.screen import DebuggerApp

            DebuggerApp(session, light=light).run()
    finally:
        session.close()


def _picture(path: Path | None, keys: str | None, size: str | None) -> Picture | None:
    """The picture that the command line asks for."""
    measured = _size(size or "120x40")
    if path is None:
        for option, value in (("--keys", keys), ("--size", size)):
            if value is not None:
                raise typer.BadParameter("there is no picture without --screenshot FILE.svg", param_hint=option)
        return None
    check_new(path, "--screenshot")
    if path.suffix.lower() != ".svg":
        raise typer.BadParameter(
            f"{path.name!r} is no picture that can be made; endings: .svg", param_hint="--screenshot"
        )
    pressed = tuple((keys or "").split())
    if pressed:
        from phases.debugger.keys import NAMED, unknown_key

        if (unknown := unknown_key(pressed)) is not None:
            raise typer.BadParameter(
                f"there is no key {unknown!r}; keys: any one character, {', '.join(NAMED)}", param_hint="--keys"
            )
    return Picture(path, pressed, measured)


def _has_terminal() -> bool:
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty())


def _size(size: str) -> tuple[int, int]:
    columns, _, lines = size.partition("x")
    try:
        width, height = int(columns), int(lines)
    except ValueError:
        width = height = 0
    if not (20 <= width <= 500 and 10 <= height <= 200):
        raise typer.BadParameter(f"expected COLUMNSxLINES from 20x10 to 500x200, not {size!r}", param_hint="--size")
    return width, height


def _input(prompt: str | None, messages: Path | None, *, raw: bool) -> Any:
    from phases.request import RowRequest

    if messages is not None:
        if prompt is not None or raw:
            raise typer.BadParameter("--messages stands for the prompt: give no PROMPT and no --raw beside it")
        return options.chat_of(messages)
    if prompt is None:
        raise typer.BadParameter('nothing to step through: give a prompt, as in phasewalk step "Hello", or --journal')
    return RowRequest(prompt=prompt, raw=raw)
