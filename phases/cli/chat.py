"""phasewalk chat: talk with a model."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from phases.cli import options
from phases.cli.files import check_new
from phases.cli.process import FAILED
from phases.cli.screen import tell


def chat(
    messages: options.Messages = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before the chat.")] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record the whole chat here, for phasewalk replay.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Also tell how many tokens each turn fed.")] = False,
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
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
) -> None:
    """Talk with a model. Its cache is kept from turn to turn, so that only what is new goes through it.

    phasewalk chat --system "Answer in one sentence."

    phasewalk chat --journal chat.jsonl

    /help lists what can be done besides: /retry, /edit, /back, /system, /set,
    /save, /load, ... Ctrl-C stops an answer and keeps the chat, Ctrl-D ends it.

    Where there is no terminal, lines are read from the standard input, and exit
    status 1 says that one of them could not be heeded.
    """
    from phases.chat.conversation import Conversation
    from phases.chat.machine import machine
    from phases.chat.talk import converse

    options.check_engine(engine)
    params = options.sampling_params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens
    )
    check_new(journal, "--journal")
    said = options.chat_of(messages).messages or () if messages else ()
    loading = options.Loading(
        model, engine, machine, strict=strict, capacity=capacity, decode=decode, quantize=quantize, export=export,
        plan=plan, lora=lora or (), use_lora=use_lora, prompt_cache=prompt_cache, prompt_cache_limit=prompt_cache_limit,
        max_prefill_tokens=max_prefill_tokens,
    )  # fmt: skip
    with loading.generator(max_batch=1) as generator:
        if not generator.tokenizer.has_chat_template:
            tell("this model has no chat template: it is given the chat as plain lines")
        with Conversation(generator, params, journal=journal) as talked:
            talked.messages = said
            if system is not None:
                talked.set_system(system)
            terminal = sys.stdin.isatty() and sys.stdout.isatty()
            failed = converse(
                talked, _typed() if terminal else _piped(), _write, tell, terminal=sys.stdout.isatty(), stats=stats
            )
    if failed and not terminal:
        raise typer.Exit(FAILED)


def _typed() -> Iterator[str]:
    from phases.chat.editor import typed_lines
    from phases.chat.talk import COMMANDS

    tell("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat")
    return typed_lines([f"/{command.name}" for command in COMMANDS])


def _piped() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"what is piped in is no {sys.stdin.encoding} text: {error}") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
