"""Answers many requests in batches; what is wrong with one of them stops none of the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from phases.errors import PromptTooLong, RequestError
from phases.files.asked import Asked
from phases.files.results import answered, refused
from phases.generator import Generator
from phases.request import GenerationRequest, RowRequest
from phases.tokenize import check_prompt
from statemachine import PhaseError

Give = Callable[[Asked, dict[str, Any]], None]
"""Takes an answer as soon as it is there."""

Ready = tuple[Asked, RowRequest]


def answer_all(generator: Generator, asked: Iterable[Asked], *, batch_size: int, give: Give) -> None:
    """Answer requests, so many rows together; a row that has ended leaves its batch.

    A request is given when its last row has ended: it has `n` of them.
    """
    batch: list[Ready] = []
    rows = 0
    for ready in _ready(generator, asked, batch_size, give):
        count = _rows_of(ready)
        if rows + count > batch_size:
            _together(generator, batch, give)
            batch, rows = [], 0
        batch.append(ready)
        rows += count
    if batch:
        _together(generator, batch, give)


def _rows_of(ready: Ready) -> int:
    return ready[1].params.n or 1


def _ready(generator: Generator, asked: Iterable[Asked], batch_size: int, give: Give) -> Iterator[Ready]:
    """The requests that can be run, as token ids; the others are refused."""
    engine = generator.engine
    for each in asked:
        if each.row is None:
            give(each, refused(each, each.problem))
            continue
        try:
            if (each.row.params.n or 1) > batch_size:
                raise RequestError(f"n is {each.row.params.n}, more than the {batch_size} rows of a --batch-size")
            [row] = generator.with_adapters(GenerationRequest((each.row,))).requests
            ids = generator.tokenizer.encode(row)
            check_prompt(0, ids, engine.kv_cache.capacity, engine.model)
        except RequestError as error:
            give(each, refused(each, error.told("--capacity") if isinstance(error, PromptTooLong) else str(error)))
            continue
        kept = row.save_system_prompt_kv_cache  # which part of it that is, the messages tell
        yield each, row if kept else replace(row, messages=None, prompt=None, raw=False, token_ids=ids)


def _together(generator: Generator, batch: list[Ready], give: Give) -> None:
    ends = list(accumulate(map(_rows_of, batch)))
    left = dict(zip(ends, batch, strict=True))  # by the row behind its last one
    with generator.start(GenerationRequest(tuple(row for _, row in batch))) as run:
        try:
            for row, _ in generator.finished(run):
                end = next(end for end in ends if row < end)
                if end not in left or {*(rows := range(end - _rows_of(left[end]), end))} & {*run.context.live}:
                    continue
                (asked, _), result = left.pop(end), generator.result(run)
                if wrong := [error for error in result.errors[rows.start : rows.stop] if error is not None]:
                    give(asked, refused(asked, wrong[0]))
                    continue
                seeds = [run.context.request.requests[row].params.seed or 0 for row in rows]
                give(asked, answered(asked, result, rows, seeds, generator.tokenizer, model=generator.source))
            return
        except PhaseError as error:
            if len(batch) == 1:
                for asked, _ in left.values():
                    give(asked, refused(asked, str(error.__cause__ or error)))
                return
    for alone in left.values():  # one of them was at fault
        _together(generator, [alone], give)
