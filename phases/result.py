"""What a run has generated so far, and how long it took."""

from phases.context import Generation
from phases.generation import check_stop
from phases.request import FinishReason, GenerationResult, RowResult
from phases.tokenizer import Tokenizer
from statemachine import Run, Status


def result_of(run: Run[Generation], tokenizer: Tokenizer) -> GenerationResult:
    """The result of a run, ended or not."""
    rows = [row_result(run, row, tokenizer) for row in range(len(run.context.slots))]
    first, per_token = _timings(run)
    return GenerationResult(
        output_ids=[row.output_ids for row in rows],
        output_texts=[row.text for row in rows],
        finish_reasons=[row.finish_reason for row in rows],
        errors=[row.error for row in rows],
        prompt_tokens=[row.prompt_tokens for row in rows],
        output_tokens=[row.output_tokens for row in rows],
        reused_tokens=[row.reused_tokens for row in rows],
        logprobs=[row.logprobs for row in rows],
        prompt_logprobs=[row.prompt_logprobs for row in rows],
        time_to_first_token=first,
        time_per_token=per_token,
    )


def row_result(run: Run[Generation], row: int, tokenizer: Tokenizer) -> RowResult:
    """What has come of a row, ended or not."""
    context, params = run.context, run.context.request.requests[row].params
    ids, logprobs = context.output_ids[row], context.logprobs[row]
    scored = params.prompt_logprobs is not None and context.prompt_logprobs
    return RowResult(
        output_ids=list(ids),
        text=context.output_texts[row] if context.output_texts else tokenizer.decode(ids)[: context.kept_text[row]],
        finish_reason=finish_reason(run, row),
        error=context.errors[row],
        prompt_tokens=len(context.prompt_ids[row]) if context.prompt_ids else 0,
        output_tokens=len(ids),
        reused_tokens=context.found[row],
        logprobs=[logprobs.get(place) for place in range(len(ids))]
        if logprobs or params.logprobs is not None
        else None,
        prompt_logprobs=[None, *context.prompt_logprobs[row]] if scored else None,
    )


def finish_reason(run: Run[Generation], row: int) -> FinishReason | None:
    """Why a row ended, by itself or with its run; None if it has not."""
    unended = FinishReason.CANCELLED if run.status is Status.CANCELLED else None
    return run.context.finish_reasons[row] or unended


def _timings(run: Run[Generation]) -> tuple[float, float]:
    """Seconds of work to the first token, and a token after that (their mean)."""
    first = total = 0.0
    tokens = 0
    for step in run.steps():
        total += step.elapsed_ns / 1e9
        if step.phase == check_stop.name:
            tokens += 1
            last = total
            if tokens == 1:
                first = total
    return first, (last - first) / (tokens - 1) if tokens > 1 else 0.0
