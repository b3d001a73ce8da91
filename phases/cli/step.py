"""phasewalk step: the interactive debugger, on a full screen or in lines."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phases.cli import constraining, options, picture
from phases.cli.constraining import constraint_of
from phases.cli.files import check_new, is_journal, readable_file
from phases.cli.process import FAILED
from phases.cli.recorded_model import model_of, tell_of_lacking_phases
from phases.cli.screen import loading_bar, tell
from phases.cli.target import MachineOption, find_machine_and_context, generating_machine

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.debugger.session import Session
    from phases.lora import Adapters
    from statemachine import Machine

RUNS = 8  # that can stand side by side: forks and snapshots
SCREEN, OTHER = "Screen", "Another machine"
# The options that make sense beside --open, and beside --context; generations take all but --context.
SHOWING = {"plain", "light", "screenshot", "keys", "size"}
OF_RECORDS = {"opened", "model", "machine", "journal", "lora", *SHOWING}
OF_MACHINES = {"prompt", "context", "journal", "opened", *SHOWING}


def step(
    asked: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to say to the model; with --context the machine, as MODULE:NAME or FILE.py:NAME.",
            show_default=False,
        ),
    ] = None,
    messages: options.Messages = None,
    raw: options.Raw = False,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record the run here, and its forks beside it.")
    ] = None,
    opened: Annotated[
        Path | None,
        typer.Option("--open", metavar="FILE",
                     help="Walk a recorded run instead, which needs no model; go on from a snapshot.",
                     exists=True, dir_okay=False, callback=readable_file),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Step through a machine of any kind: the function or class, or FILE.py:NAME, that makes its context.",
            rich_help_panel=OTHER,
        ),
    ] = None,
    model: options.Model = None,
    engine: options.Engine = "auto",
    decode: options.Decode = None,
    plan: options.Plan = None,
    quantize: options.Quantize = options.Quantization.NONE,
    export: options.Export = None,
    lora: options.Lora = None,
    use_lora: options.UseLora = None,
    strict: options.Strict = False,
    capacity: options.Capacity = None,
    max_prefill_tokens: options.MaxPrefillTokens = None,
    machine: MachineOption = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
    min_new_tokens: options.MinNewTokens = None,
    stop: options.Stop = None,
    keep_stop: options.KeepStop = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    no_repeat_ngram_size: options.NoRepeatNgramSize = None,
    logit_bias: options.LogitBias = None,
    allow: options.Allow = None,
    forbid: options.Forbid = None,
    json_schema: constraining.JsonSchema = None,
    regex: constraining.Regex = None,
    choice: constraining.Choice = None,
    grammar: constraining.Grammar = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Commands and answers as lines; also where there is no terminal.",
                           rich_help_panel=SCREEN),
    ] = False,
    light: Annotated[
        bool, typer.Option("--light", help="Dark on light; d changes it.", rich_help_panel=SCREEN)
    ] = False,
    screenshot: picture.Screenshot = None,
    keys: picture.Keys = None,
    size: picture.Size = None,
) -> None:  # fmt: skip
    """Step through a run: watch, stop, go back, change it, fork it.

    phasewalk step "Tell me a story about a fox."

    phasewalk step --open hello.jsonl

    phasewalk step lights.py:machine --context lights.py:Crossing

    printf 'break if top1 < 0.3\\nrun\\ncandidates\\n' | phasewalk step "Hello" --plain --seed 1

    phasewalk step "Hello" --seed 1 --screenshot step.svg --keys "n n n s"
    """
    wanted = picture.picture_of(screenshot, keys, size)

    def show(session: "Session[Any]") -> None:
        _show(session, plain=plain, light=light, wanted=wanted)

    if context is not None:
        _refuse_beside(asked, "--context", OF_MACHINES)
        if prompt is None:
            raise typer.BadParameter(
                "which machine? phasewalk step MODULE:NAME --context MODULE:NAME", param_hint="--context"
            )
        found, new_context = find_machine_and_context(prompt, context)
        show(_of_machine(found, new_context, journal, opened))
        return
    from phases.debugger.generation import GenerationSession

    generating = generating_machine(machine)
    if opened is not None:
        _refuse_beside(asked, "--open", OF_RECORDS)
        if not is_journal(opened):
            check_new(journal, "--journal")
            _of_snapshot(opened, model, generating, journal, show, options.adapters_of(lora or ()))
            return
        _refuse_journal(journal)
        if lora:
            raise typer.BadParameter("a record is walked without a model, and without adapters", param_hint="--lora")
        recorded = GenerationSession.recorded(opened, generating, model)
        assert recorded.record is not None
        tell_of_lacking_phases(recorded.record.journal, generating)
        if recorded.record.without_text:
            tell(recorded.record.without_text)
        show(recorded)
        return
    options.check_engine(engine)
    x = _input(prompt, messages, raw=raw)
    check_new(journal, "--journal")
    params = options.sampling_params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens, stop=stop, keep_stop=keep_stop, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size, logit_bias=logit_bias or (), allowed_token_ids=allow,
        forbidden_token_ids=forbid, constraint=constraint_of(json_schema, regex, choice, grammar),
    )  # fmt: skip
    loading = options.Loading(
        model, engine, generating, strict=strict, capacity=capacity, decode=decode, quantize=quantize, export=export,
        plan=plan, lora=lora or (), use_lora=use_lora, max_prefill_tokens=max_prefill_tokens,
    )  # fmt: skip
    with loading.generator(max_batch=RUNS) as generator:
        show(GenerationSession.live(generator, generator.start(x, params, keep=True, journal=journal)))


def _of_snapshot(
    opened: Path,
    model: str | None,
    machine: "Machine[Generation]",
    journal: Path | None,
    show: "Callable[[Session[Any]], None]",
    adapters: "Adapters",
) -> None:
    """Show a generation that goes on from a snapshot, with the model that it names."""
    from phases.debugger.generation import GenerationSession
    from phases.replay import load_generator
    from statemachine.record.snapshot import load

    saved = load(opened)
    tell_of_lacking_phases(saved.journal, machine)
    model = model_of(saved.journal, model)
    with loading_bar(model or "the demo model") as progress:
        generator = load_generator(saved.journal, model=model, machine=machine, progress=progress, adapters=adapters)
    with generator:
        run = generator.resume(saved, journal=journal, keep=True)
        show(GenerationSession(run, generator, origin=f"loaded from {opened.name}"))


def _of_machine(
    machine: "Machine[Any]", new_context: Callable[[], Any], journal: Path | None, opened: Path | None
) -> "Session[Any]":
    """A session of a machine of any kind: live, or over its record."""
    from phases.debugger.machine_session import live, recorded

    if opened is not None and is_journal(opened):
        _refuse_journal(journal)
        session = recorded(opened, machine, new_context)
        tell_of_lacking_phases(session.record.journal, machine)
        return session
    check_new(journal, "--journal")
    return live(machine, new_context, journal, opened)


def _refuse_journal(journal: Path | None) -> None:
    if journal is not None:
        raise typer.BadParameter("a record is walked, there is nothing to record", param_hint="--journal")


def _refuse_beside(asked: typer.Context, option: str, sensible: set[str]) -> None:
    """Refuse every option that was given and makes no sense beside this one."""
    for parameter in asked.command.params:
        name = str(parameter.name)
        source = asked.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in sensible:
            given = "a prompt" if name == "prompt" else parameter.opts[0]
            raise typer.BadParameter(f"{given} makes no sense beside {option}", param_hint=option)


def _show(session: "Session[Any]", *, plain: bool, light: bool, wanted: picture.Picture | None) -> None:
    try:
        if wanted is not None:
            from phases.debugger.app import picture as draw

            draw(session, wanted.path, wanted.keys, wanted.size, light=light)
        elif plain or not _has_terminal():
            from phases.debugger.plain import converse

            if converse(session, sys.stdin, sys.stdout) and not sys.stdin.isatty():
                raise typer.Exit(FAILED)
        else:
            from phases.debugger.app import DebuggerApp

            DebuggerApp(session, light=light).run()
    finally:
        session.close()


def _has_terminal() -> bool:
    return bool(sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty())


def _input(prompt: str | None, messages: Path | None, *, raw: bool) -> Any:
    from phases.request import RowRequest

    if messages is not None:
        if prompt is not None or raw:
            raise typer.BadParameter("--messages stands for the prompt: give no PROMPT and no --raw beside it")
        return options.chat_of(messages)
    if prompt is None:
        raise typer.BadParameter('nothing to step through: give a prompt, as in phasewalk step "Hello", or --open FILE')
    return RowRequest(prompt=prompt, raw=raw)
