"""What a run has generated so far, and how long it took."""

from phases.context import Generation
from phases.generation import check_stop
from phases.request import FinishReason, GenerationResult
from phases.tokenizer import Tokenizer
from statemachine import Run, Status


def result_of(run: Run[Generation], tokenizer: Tokenizer) -> GenerationResult:
    """The result of a run, ended or not."""
    context = run.context
    rows = context.request.requests
    unended = FinishReason.CANCELLED if run.status is Status.CANCELLED else None
    texts = context.output_texts or [
        tokenizer.decode(ids)[:kept] for ids, kept in zip(context.output_ids, context.kept_text, strict=True)
    ]
    first, per_token = _timings(run)
    return GenerationResult(
        output_ids=[list(ids) for ids in context.output_ids],
        output_texts=list(texts),
        finish_reasons=[reason or unended for reason in context.finish_reasons],
        prompt_tokens=[len(ids) for ids in context.prompt_ids] or [0] * len(context.slots),
        output_tokens=[len(ids) for ids in context.output_ids],
        logprobs=[
            [found.get(place) for place in range(len(ids))] if found or row.params.logprobs is not None else None
            for row, ids, found in zip(rows, context.output_ids, context.logprobs, strict=True)
        ],
        prompt_logprobs=[
            [None, *found] if row.params.prompt_logprobs is not None and context.prompt_logprobs else None
            for row, found in zip(rows, context.prompt_logprobs or [()] * len(rows), strict=True)
        ],
        time_to_first_token=first,
        time_per_token=per_token,
    )


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
