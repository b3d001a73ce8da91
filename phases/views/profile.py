"""Measures where the time of a decode step goes, and the numbers behind it, on the machine at hand."""

import statistics
from dataclasses import dataclass

from gpu import DeviceProfile, KeyNumber
from phases.generator import Generator
from phases.request import RowRequest, SamplingParams
from phases.views.decode_step import PARTS, Part, part_of, plain_steps, watched_steps
from phases.views.engine_functions import engine_parts
from phases.views.key_numbers import key_numbers
from phases.views.stopwatches import calibrate

PASSES = 3  # of each kind, in turns, so that all meet the same weather


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured.

    Attributes
    ----------
    step_ns, plain_step_ns
        The median of a whole decode step with the stopwatches in it, less what they cost, and without any.
    stopwatch_ns
        What the stopwatches cost in a step; taken off each part by a calibration.
    engine_parts
        The engine's own functions, from a pass under cProfile, as shares of `engine`; empty for an engine that is not
        written in Python.
    device
        What the engine measured where the clock of the host does not reach, if it has a device.
    """

    steps: int
    prompt_tokens: int
    step_ns: float
    plain_step_ns: float
    stopwatch_ns: float
    parts: tuple[Part, ...]
    engine_parts: tuple[Part, ...]
    key_numbers: tuple[KeyNumber, ...]
    device: DeviceProfile | None


def profile(generator: Generator, prompt: str, *, tokens: int = 100, rows: int = 1, context: int = 128) -> Profile:
    """Measure decode steps of real generations: the same request again and again, with and without stopwatches.

    The parts add up to the step: every step's time is the run's own record of it, and what no stopwatch accounts for
    is the machine's. What the engine knows of its device it measures at steps of so many rows, of so many tokens each.
    """
    params = SamplingParams(max_new_tokens=tokens, stop_token_ids=(), seed=0)
    request = RowRequest(prompt=prompt)
    plain_steps(generator, request, params)  # the first generation pays for cold caches
    plain: list[int] = []
    watched: list[dict[str, float]] = []
    bias = calibrate()
    for _ in range(PASSES):
        plain += plain_steps(generator, request, params)
        watched += watched_steps(generator, request, params, bias)
    totals = [sum(step.values()) - step["stopwatch"] for step in watched]
    step_ns = statistics.median(totals)
    parts = tuple(part_of(name, [step[name] for step in watched], sum(totals), what) for name, what in PARTS.items())
    engine = next(part for part in parts if part.name == "engine")
    run = generator.start(request, params)
    with run:
        run.until(run.machine.phases["sample"])
        prompt_tokens = len(run.context.prompt_ids[0])
    plain_ns = statistics.median(plain)
    return Profile(
        steps=len(watched) // PASSES, prompt_tokens=prompt_tokens, step_ns=step_ns, plain_step_ns=plain_ns,
        stopwatch_ns=statistics.median(step["stopwatch"] for step in watched), parts=parts,
        engine_parts=engine_parts(generator, request, params, engine),
        key_numbers=tuple(key_numbers(generator, plain_ns)),
        device=generator.engine.profile(rows=rows, context=context),
    )  # fmt: skip
