"""Where the time of a decode step goes: Sample, Decode and CheckStop of a real generation, by parts."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from phases.context import Generation
from phases.generator import Generator
from phases.request import RowRequest, SamplingParams
from phases.views.stopwatches import Bias, StandIn, Stopwatches
from statemachine import Machine, Phase, Run
from statemachine.definition.table import name_of

# What the six rows of a decode step are; `phasewalk profile --help` says the same in a few words each.
PARTS = {
    "context update": "apply of Sample, Decode and CheckStop: lengths, tokens and reasons on the host",
    "binding": "the rest of their run: which rows go on, and in which slots; the buffers themselves were bound once",
    "engine": "engine.decode, without the commit",
    "sampling": "engine.sample and the wait for the token, engine.sampled",
    "KV commit": "kv_cache.commit, one a row",
    "machine": "three steps of the machine: the loop, the guards (which look at every row), the record in memory",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A row of the first table: what a part takes in a decode step."""

    name: str
    median_ns: float
    p95_ns: float
    share: float
    what: str


def part_of(name: str, times: Sequence[float], total: float, what: str) -> Part:
    """A part's share is of the sum over all steps, so that shares add up to 1."""
    return Part(name, statistics.median(times), _p95(times), sum(times) / total, what)


def _p95(times: Sequence[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(0.95 * len(times)))]


def _decode_steps(run: Run[Generation]) -> Iterator[int]:
    """The time of each Sample, Decode and CheckStop together; the last token has no Decode and is left out."""
    total, decoded = 0, False
    for step in run.steps():
        if step.phase == "sample":
            total, decoded = 0, False
        total += step.elapsed_ns
        decoded |= step.phase == "decode"
        if step.phase == "check_stop" and decoded:
            yield total


def plain_steps(generator: Generator, request: RowRequest, params: SamplingParams) -> list[int]:
    """Each decode step's time, without any stopwatch."""
    run = generator.start(request, params)
    run.start()
    return list(_decode_steps(run))


def _watched_machine(machine: Machine[Generation], watches: Stopwatches) -> Machine[Generation]:
    """The same table, with stopwatches around run and apply of the phases of a decode step."""
    timed: dict[str, Phase[Generation, Any]] = {}
    for name, phase in machine.phases.items():
        timed[name] = phase
        if name in ("sample", "decode", "check_stop"):
            copy: Any = Phase[Generation, Any](name)
            copy.run, copy.apply = watches.wrap("run", phase.run), watches.wrap("apply", phase.apply)
            timed[name] = copy
    table = [replace(way, source=timed[name_of(way.source)], target=timed[name_of(way.target)])
             for way in machine.transitions]  # fmt: skip
    return Machine(machine.name, start=timed[machine.start.name], transitions=table)


@contextmanager
def _watched_cache(engine: Any, watches: Stopwatches) -> Iterator[None]:
    cache = engine.kv_cache
    engine.kv_cache = StandIn(cache, commit=watches.wrap("commit", cache.commit))
    try:
        yield
    finally:
        engine.kv_cache = cache


def watched_steps(
    generator: Generator, request: RowRequest, params: SamplingParams, bias: Bias
) -> Iterator[dict[str, float]]:
    """Each decode step's time by parts, and what the stopwatches cost in it."""
    watches, engine = Stopwatches(), generator.engine
    machine = _watched_machine(generator.machine, watches)
    with generator.start(request, params) as lent:  # rows, and the request as it is resolved
        context = lent.context
        context.engine = StandIn(
            engine,
            decode=watches.wrap("decode", engine.decode),
            sample=watches.wrap("sample", engine.sample),
            sampled=watches.wrap("sample", engine.sampled),
        )
        run = Run(machine, context)
        seen: list[tuple[dict[str, int], dict[str, int]]] = []

        def after_each_token(run: Run[Generation]) -> bool:
            if run.phase.name == "sample":
                seen.append(watches.take())
            return False

        with _watched_cache(engine, watches):
            run.until(after_each_token)
        # The first one seen is Prefill's; the last token has no Decode, and is not seen.
        for total, (times, calls) in zip(_decode_steps(run), seen[1:], strict=True):
            yield _parts_of(total, times, calls, bias)


def _parts_of(total: int, times: dict[str, int], calls: dict[str, int], bias: Bias) -> dict[str, float]:
    """One step's time by parts: each stopwatch's time less those inside it, and less what the stopwatches cost."""
    own = {name: times[name] - bias.inside_ns * calls[name] for name in times}
    below = {name: times[name] + bias.outside_ns * calls[name] for name in times}  # what it costs whoever calls
    return {
        "context update": own["apply"],
        "binding": own["run"] - below["decode"] - below["sample"],
        "engine": own["decode"] - below["commit"],
        "sampling": own["sample"],
        "KV commit": own["commit"],
        "machine": total - below["run"] - below["apply"],
        "stopwatch": sum(calls.values()) * (bias.inside_ns + bias.outside_ns),
    }
