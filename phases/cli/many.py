"""Answers the requests of a file into another one; the thin layer of `phasewalk run --input` over `phases.files`."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

from phases.cli.files import check_grown
from phases.cli.options import Loading
from phases.cli.screen import request_bar, tell, warn

if TYPE_CHECKING:
    from phases.files.asked import Asked
    from phases.request import SamplingParams

# What of the command line has a meaning for many requests.
SENSIBLE = {
    "source", "output", "batch_size", "model", "engine", "decode", "plan", "quantize", "export", "strict", "capacity",
    "prompt_cache", "prompt_cache_limit", "max_prefill_tokens", "machine", "temperature", "top_k", "top_p", "min_p",
    "seed", "max_new_tokens", "min_new_tokens", "stop", "keep_stop", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram_size", "logit_bias",
    "allow", "forbid", "lora", "use_lora", "json_schema", "regex", "choice", "grammar",
}  # fmt: skip


def refuse_beside(given: typer.Context) -> None:
    """Refuse every option that was given and is for one request."""
    for parameter in given.command.params:
        name = str(parameter.name)
        source = given.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in SENSIBLE:
            what = "a prompt" if name == "prompt" else parameter.opts[0]
            raise typer.BadParameter(f"{what} makes no sense beside --input", param_hint="--input")


def answer_file(
    source: Path | None, output: Path | None, batch_size: int, params: "SamplingParams", loading: Loading
) -> None:
    """Answer what is not answered yet."""
    if source is None or output is None:
        raise typer.BadParameter("give both: --input FILE with requests, --output FILE for their answers",
                                 param_hint="--input")  # fmt: skip
    check_grown(output, "--output", unlike=source)
    from phases.files.results import Results
    from phases.files.source import read

    salt = _salt(params, loading)
    marks = [asked.mark for asked in read(source, salt)]
    if not marks:
        raise typer.BadParameter(f"{source} holds no request", param_hint="--input")
    results = Results(output, marks)
    before, refused, tokens, began = len(results.done), 0, 0, perf_counter()
    if results.cut:
        tell(f"{output}: a line that was cut off by the end of a process was taken away")
    if before:
        tell(f"{before} of {len(marks)} requests are answered already")
    try:
        if before < len(marks):
            from phases.files.answering import answer_all

            with loading.generator(max_batch=batch_size) as generator:
                generator.defaults = params.over(generator.defaults)
                began = perf_counter()
                with request_bar(before, len(marks)) as watch:

                    def give(asked: "Asked", answer: dict[str, Any]) -> None:
                        nonlocal refused, tokens
                        results.add(asked, answer)
                        counted = _tokens(answer)
                        refused, tokens = refused + (counted is None), tokens + (counted or 0)
                        if watch:
                            watch(len(results.done))

                    pending = (asked for asked in read(source, salt) if asked.mark not in results.done)
                    answer_all(generator, pending, batch_size=batch_size, give=give)
    except KeyboardInterrupt:
        tell(f"{len(results.done)} of {len(marks)} requests are answered; the same command goes on from here")
        raise
    finally:
        results.close()
    seconds = perf_counter() - began
    words = f"{len(marks) - before} requests, {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s"
    tell(f"{words}" if len(marks) > before else "nothing was left to do")
    if refused:
        warn(f"{refused} of them could not be answered: {output} says why")


def _tokens(answer: dict[str, Any]) -> int | None:
    """How many tokens an answer has; None if it says why there is none."""
    if "response" in answer:
        usage = answer["response"]["body"].get("usage")
        return int(usage["completion_tokens"]) if usage else None
    return None if "error" in answer else int(answer["output_tokens"])


def _salt(params: "SamplingParams", loading: Loading) -> str:
    """What an answer depends on besides its request; two engines give the same, but for rounding."""
    from gpu import model_fingerprint, resolve_checkpoint, tokenizer_fingerprint
    from gpu.adapter import adapter_fingerprint
    from phases.cli.options import adapters_of
    from phases.generator import DEMO_MODEL
    from phases.lora import folder_of

    adapters = adapters_of(loading.lora, loading.use_lora)
    folder = resolve_checkpoint(DEMO_MODEL if loading.model is None else loading.model)
    return repr((
        model_fingerprint(folder), tokenizer_fingerprint(folder), loading.quantize.value, loading.capacity, params,
        loading.machine.fingerprint,
        *((name, adapter_fingerprint(folder_of(name, path))) for name, path in sorted(adapters.items())),
        *([] if loading.use_lora is None else [loading.use_lora]),
    ))  # fmt: skip
