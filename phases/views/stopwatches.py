"""Stopwatches around functions, and what the stopwatches themselves cost."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

LOOP, REPEATS = 20_000, 15  # calls that a stopwatch is calibrated with, and how often


class Stopwatches:
    """Wraps functions so that the time spent in each is added up, by name and by level.

    A function of one level calls only functions of the next, so a level's own time is its time less the next one's.
    """

    def __init__(self) -> None:
        self.times: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""
        times, calls, clock = self.times, self.calls, perf_counter_ns
        times[name] = times.get(name, 0)
        calls[name] = calls.get(name, 0)

        def timed(*arguments: Any) -> Any:
            began = clock()
            result = function(*arguments)
            times[name] += clock() - began
            calls[name] += 1
            return result

        return timed

    def take(self) -> tuple[dict[str, int], dict[str, int]]:
        """Times and calls since the last call of this method."""
        taken = dict(self.times), dict(self.calls)
        for name in self.times:
            self.times[name] = self.calls[name] = 0
        return taken


@dataclass(frozen=True, slots=True)
class Bias:
    """What one use of a stopwatch adds: to the time that it shows, and beside that to whoever calls."""

    inside_ns: float
    outside_ns: float


def calibrate() -> Bias:
    """Time a function that does nothing, with a stopwatch and without."""

    def nothing() -> None: ...

    def loop(function: Callable[[], Any]) -> float:
        began = perf_counter_ns()
        for _ in range(LOOP):
            function()
        return (perf_counter_ns() - began) / LOOP

    whole, inside = [], []
    for _ in range(REPEATS):
        watches = Stopwatches()
        watched = watches.wrap("nothing", nothing)
        bare = loop(nothing)
        whole.append(loop(watched) - bare)
        inside.append(watches.times["nothing"] / LOOP - bare)
    shown = max(0.0, statistics.median(inside))
    return Bias(shown, max(0.0, statistics.median(whole) - shown))


class StandIn:
    """A stand-in that has some timed methods, and everything else of the object that it stands for."""

    def __init__(self, target: Any, **methods: Callable[..., Any]) -> None:
        self.__dict__.update(methods)
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)
