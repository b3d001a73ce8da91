"""Engines held against the NumPy engine on the bundled model, in lines for phasewalk doctor."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing

import typer

from phases.cli.screen import loading_bar, told

Line = tuple[str, str, str]  # a state, what, and how it is
GOOD, MISSING, BAD = "[green]ok[/]", "[yellow]--[/]", "[red]!![/]"
_PROMPT, _TOKENS = 64, 64  # of the model's held-out text, and behind that


def verified(engines: Iterable[str]) -> Iterator[Line]:
    """Load the bundled model into each engine, and tell how near it comes to the NumPy engine.

    Raises
    ------
    typer.BadParameter
        If there is no engine of a name.
    """
    from gpu import refused_engine, unavailable_engines

    for name in engines:
        if (refused := refused_engine(name)) is None:
            try:
                yield from _compared(name)
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                yield BAD, f"engine {name}", told(error)
        elif name in unavailable_engines():
            yield BAD, f"engine {name}", refused
        else:
            raise typer.BadParameter(refused, param_hint="--engine")


def _compared(name: str) -> Iterator[Line]:
    from gpu import load_engine
    from gpu.verdict import verdict
    from phases.generator import DEMO_MODEL
    from phases.tokenizer import Tokenizer

    text = (DEMO_MODEL / "held_out.txt").read_text(encoding="utf-8")
    prompt = Tokenizer.from_pretrained(DEMO_MODEL).encode_continuation(text)[:_PROMPT]
    capacity = _PROMPT + _TOKENS
    with closing(load_engine(DEMO_MODEL, "numpy", max_batch=1, capacity=capacity)) as reference:
        began = time.perf_counter()
        with loading_bar("the demo model") as progress:
            loaded = load_engine(DEMO_MODEL, name, max_batch=2, capacity=capacity, progress=progress)
        with closing(loaded):
            seconds = time.perf_counter() - began
            found = verdict(loaded, reference, prompt, tokens=_TOKENS)
            facts = loaded.facts()
    yield GOOD, f"engine {name}", f"loaded in {seconds:.1f} s, its own check passed; {found.dtype}"
    for what, fact in facts.items():
        yield GOOD, f"  {what}", str(fact)
    near = GOOD if found.off_by <= found.allowed else BAD
    yield near, "  logits", f"off by {found.off_by:.1e} of the largest one, allowed {found.allowed:.0e}"
    same = f"{found.same} of {found.tokens} the same"
    doubtful = f", {found.doubtful} that rounding decides" if found.doubtful else ""
    yield GOOD if found.same + found.doubtful == found.tokens else BAD, "  likeliest tokens", same + doubtful
    if found.passed:
        yield GOOD, "verdict", f"{name} computes what numpy does"
    else:
        yield BAD, "verdict", f"{name} does not compute what numpy does: use another engine here, and tell us"
