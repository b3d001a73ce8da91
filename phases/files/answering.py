"""Answers many requests in batches; what is wrong with one of them stops none of the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from phases.errors import PromptTooLong, RequestError
from phases.files.asked import Asked
from phases.files.results import answered, refused
from phases.generation import check_stop
from phases.generator import Generator
from phases.request import GenerationRequest, RowRequest
from phases.tokenize import check_prompt
from statemachine import PhaseError

Give = Callable[[Asked, dict[str, Any]], None]
"""Takes an answer as soon as it is there."""

Ready = tuple[Asked, RowRequest]


def answer_all(generator: Generator, asked: Iterable[Asked], *, batch_size: int, give: Give) -> None:
    """Answer requests, so many together; a row that has ended leaves its batch and is given at once."""
    batch: list[Ready] = []
    for ready in _ready(generator, asked, give):
        batch.append(ready)
        if len(batch) == batch_size:
            _together(generator, batch, give)
            batch = []
    if batch:
        _together(generator, batch, give)


def _ready(generator: Generator, asked: Iterable[Asked], give: Give) -> Iterator[Ready]:
    """The requests that can be run, as token ids; the others are refused."""
    engine = generator.engine
    for each in asked:
        if each.row is None:
            give(each, refused(each, each.problem))
            continue
        try:
            _check_one_answer(each.row)
            [row] = generator.with_adapters(GenerationRequest((each.row,))).requests
            ids = generator.tokenizer.encode(row)
            check_prompt(0, ids, engine.kv_cache.capacity, engine.model)
        except RequestError as error:
            give(each, refused(each, error.told("--capacity") if isinstance(error, PromptTooLong) else str(error)))
            continue
        yield each, replace(row, messages=None, prompt=None, raw=False, token_ids=ids)


def _check_one_answer(row: RowRequest) -> None:
    """Raise RequestError for a request that asks for more than one text."""
    params = row.params
    if (params.n or 1) != 1:
        raise RequestError("a line has one answer, so n is 1: write it so many times, with a seed each")
    if params.logprobs is not None or params.prompt_logprobs is not None:
        raise RequestError("answers in a file have no log-probabilities: take logprobs out")


def _together(generator: Generator, batch: list[Ready], give: Give) -> None:
    left = dict(enumerate(batch))
    with generator.start(GenerationRequest(tuple(row for _, row in batch))) as run:
        try:
            for _ in run.each(check_stop):
                ended = [row for row in left if row not in run.context.live]
                result = generator.result(run) if ended else None
                for row in ended:
                    assert result is not None
                    params, (asked, _) = run.context.request.requests[row].params, left.pop(row)
                    give(asked, answered(
                        asked, text=result.output_texts[row], ids=result.output_ids[row],
                        finish_reason=str(result.finish_reasons[row]), prompt_tokens=result.prompt_tokens[row],
                        seed=params.seed or 0, model=generator.source,
                    ))  # fmt: skip
            return
        except PhaseError as error:
            if len(batch) == 1:
                for asked, _ in left.values():
                    give(asked, refused(asked, str(error.__cause__ or error)))
                return
    for alone in left.values():  # one of them was at fault
        _together(generator, [alone], give)
