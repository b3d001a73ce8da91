"""Work that blocks, in a thread of its own, for tasks of asyncio that may be cancelled."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Result = TypeVar("Result")

ASK_AGAIN = 0.05  # seconds, for work that had not begun when it was asked to stop


async def in_thread(work: Callable[[], Result], *, stop: Callable[[], None]) -> Result:
    """Do work in a thread of its own.

    When the task is cancelled, `stop` asks the work to come to its end, and the cancellation goes on when it has.
    """
    threads = _thread()
    try:
        return cast(Result, await _await(threads, work, stop))
    finally:
        threads.shutdown(wait=False)


async def each_in_thread(items: Iterator[Result], *, stop: Callable[[], None]) -> AsyncIterator[Result]:
    """Give what an iterator gives, which works in a thread of its own; cancelled as in `in_thread`."""
    threads, over = _thread(), object()
    try:
        while (item := await _await(threads, lambda: next(items, over), stop)) is not over:
            yield item
    finally:
        threads.shutdown(wait=False)


def _thread() -> "ThreadPoolExecutor":
    from concurrent.futures import ThreadPoolExecutor  # only here: others need not wait for it

    return ThreadPoolExecutor(1)


async def _await(threads: "ThreadPoolExecutor", work: Callable[[], Any], stop: Callable[[], None]) -> Any:
    import asyncio  # takes 40 ms, which only those who use it need wait for

    future = asyncio.get_running_loop().run_in_executor(threads, copy_context().run, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            stop()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future], timeout=ASK_AGAIN)
        with suppress(BaseException):
            future.result()  # so that nobody says it was never looked at
        raise
