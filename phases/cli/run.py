"""phasewalk run: generate text from a prompt and stream it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phases.cli import constraining, options
from phases.cli.constraining import constraint_of
from phases.cli.driving import drive
from phases.cli.files import check_new, check_snapshot, readable_file
from phases.cli.screen import warn
from phases.cli.target import MachineOption, generating_machine

if TYPE_CHECKING:
    from phases.context import Generation
    from phases.request import RowRequest
    from statemachine import JournalWriter, Machine

OUTPUT, RECORD, MANY = options.OUTPUT, "Record", "Many requests, of a file"


def run(
    asked: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to say to the model; - or none: what is piped in.")] = None,
    messages: options.Messages = None,
    raw: options.Raw = False,
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
    prompt_cache: options.PromptCache = None,
    prompt_cache_limit: options.PromptCacheLimit = options.LIMIT,
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
    n: options.Samples = None,
    logprobs: options.Logprobs = None,
    prompt_logprobs: options.PromptLogprobs = None,
    json_schema: constraining.JsonSchema = None,
    regex: constraining.Regex = None,
    choice: constraining.Choice = None,
    grammar: constraining.Grammar = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Also tell speed and share of memory bandwidth.", rich_help_panel=OUTPUT)
    ] = False,
    phases: Annotated[
        bool, typer.Option("--phases", help="Show the phases as they pass.", rich_help_panel=OUTPUT)
    ] = False,
    nvtx: Annotated[
        bool,
        typer.Option("--nvtx", help="Mark each phase as an NVTX range, for Nsight Systems.", rich_help_panel=OUTPUT),
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
        typer.Option("--journal-optional", rich_help_panel=RECORD,
                     help="If the journal cannot be made or written (a full disk, say), go on without."),
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
    force: Annotated[
        bool, typer.Option("--force", help="Let --snapshot replace a file that exists.", rich_help_panel=RECORD)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False,
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Requests, one a line, in JSON; OpenAI's batch lines, too.",
                     exists=True, dir_okay=False, callback=readable_file, rich_help_panel=MANY),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where their answers go; one that was begun is gone on with.",
                     rich_help_panel=MANY),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="How many are answered together.", show_default="8",
                     rich_help_panel=MANY),
    ] = None,
) -> None:  # fmt: skip
    """Generate text and stream it.

    phasewalk run "Tell me a story about a fox."

    phasewalk run "What does Prefill do?" --phases --stats

    echo "Count from 3 to 9" | phasewalk run --temperature 0

    phasewalk run "Hello" --journal hello.jsonl; phasewalk replay hello.jsonl

    phasewalk run "Tell me a story." -n 3 --stop fox --repetition-penalty 1.2 --logprobs 2

    phasewalk run "Is a fox an animal?" --choice yes --choice no

    phasewalk run --messages chat.json --prompt-cache prompts

    phasewalk run "Tell me a story about a fox." --use-lora pirate

    phasewalk run --input requests.jsonl --output results.jsonl --batch-size 16
    """
    from phases.constrain import constrained
    from phases.request import GenerationRequest

    generating = generating_machine(machine)
    options.check_engine(engine)
    params = options.sampling_params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens, stop=stop, keep_stop=keep_stop, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size, logit_bias=logit_bias or (), allowed_token_ids=allow,
        forbidden_token_ids=forbid, n=n, logprobs=logprobs, prompt_logprobs=prompt_logprobs,
        constraint=constraint_of(json_schema, regex, choice, grammar),
    )  # fmt: skip
    loading = options.Loading(
        model, engine, generating, strict=strict, capacity=capacity, decode=decode, quantize=quantize, export=export,
        plan=plan, lora=lora or (), use_lora=use_lora, prompt_cache=prompt_cache, prompt_cache_limit=prompt_cache_limit,
        max_prefill_tokens=max_prefill_tokens,
    )  # fmt: skip
    if source is not None or output is not None or batch_size is not None:
        from phases.cli.many import answer_file, refuse_beside

        refuse_beside(asked)
        answer_file(source, output, batch_size or 8, params, loading)
        return
    x = _input(prompt, messages, raw=raw)
    if nvtx:
        loading = replace(loading, machine=_with_ranges(constrained(generating, GenerationRequest.of(x, params))))
    check_new(journal, "--journal", writable=not journal_optional)
    check_snapshot(snapshot, force=force, journal=journal)
    with loading.generator(max_batch=n or 1) as generator:
        request = generator.request(x, params)  # what is refused leaves no journal
        writer = _writer(journal, sync=journal_sync, optional=journal_optional) if journal else None
        run = generator.start(request, journal=writer, digest_every=digest_every)
        drive(generator, run, snapshot=snapshot, stats=stats, phases=phases, as_json=as_json)


def _with_ranges(machine: "Machine[Generation]") -> "Machine[Generation]":
    from phases.nvtx_ranges import with_ranges

    try:
        return with_ranges(machine)
    except ImportError as error:
        raise typer.BadParameter(str(error), param_hint="--nvtx") from error


def _writer(path: Path, *, sync: bool, optional: bool) -> "JournalWriter | None":
    """The journal; None with a warning if it is optional and cannot be made."""
    from statemachine import JournalError, JournalWriter

    try:
        return JournalWriter(path, sync=sync, on_full="drop" if optional else "fail")
    except JournalError as error:
        if not optional:
            raise
        warn(f"{error}; the run goes on without it")
        return None


def _input(prompt: str | None, messages: Path | None, *, raw: bool) -> "RowRequest":
    """What the user wants continued, wherever it came from."""
    from phases.request import RowRequest

    if messages is not None:
        if prompt is not None or raw:
            raise typer.BadParameter("--messages stands for the prompt: give no PROMPT and no --raw beside it")
        return options.chat_of(messages)
    if prompt is None or prompt == "-":
        try:
            prompt = "" if prompt is None and sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"what is piped in is no {sys.stdin.encoding} text: {error}") from error
        if not prompt:
            raise typer.BadParameter(
                'nothing to say: give a prompt, as in phasewalk run "Hello", or pipe one in; phasewalk chat talks with '
                "the model"
            )
    return RowRequest(prompt=prompt, raw=raw)
