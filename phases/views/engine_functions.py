"""The engine's own functions within a decode step, as cProfile sees them."""

import cProfile
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from phases.generator import Generator
from phases.request import RowRequest, SamplingParams
from phases.views.decode_step import Part
from phases.views.stopwatches import StandIn


def engine_parts(generator: Generator, request: RowRequest, params: SamplingParams, engine: Part) -> tuple[Part, ...]:
    """The functions that decode calls, under cProfile: their shares are those of that pass, as it slows all alike."""
    decode = getattr(type(generator.engine).decode, "__code__", None)
    profiler = cProfile.Profile(builtins=False)
    with generator.start(request, params) as run:
        context = run.context

        def decode_profiled(rows: Sequence[int]) -> None:
            profiler.enable()
            try:
                generator.engine.decode(rows)
            finally:
                profiler.disable()

        context.engine = StandIn(generator.engine, decode=decode_profiled)
        run.start()
    entries = [entry for entry in profiler.getstats() if entry.code is decode]
    if decode is None or not entries or not entries[0].calls:
        return ()
    (entry,) = entries
    times: dict[str, float] = {}
    for call in entry.calls:
        if isinstance(call.code, CodeType) and call.code.co_name != "commit":
            name = _function_name(call.code)
            times[name] = times.get(name, 0) + call.totaltime
    whole = entry.totaltime - sum(call.totaltime for call in entry.calls if _is_commit(call.code))
    times["written out in decode itself"] = whole - sum(times.values())
    return tuple(
        Part(name, time / whole * engine.median_ns, time / whole * engine.p95_ns, time / whole, "under cProfile")
        for name, time in sorted(times.items(), key=lambda item: -item[1])
        if time / whole >= 0.002
    )


def _is_commit(code: Any) -> bool:
    return isinstance(code, CodeType) and code.co_name == "commit"


def _function_name(code: CodeType) -> str:
    qualified = code.co_qualname.removesuffix(".__call__")
    return f"{Path(code.co_filename).stem}.{qualified}"
