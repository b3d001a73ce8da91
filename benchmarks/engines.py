"""Every engine that this machine has, in one table: speed, time to first token, loading, memory, and agreement.

    python benchmarks/engines.py [MODEL] [--engines NAME ...] [--threads N] [--tokens N] [--rounds N] [--json FILE]

Without MODEL (a folder in Hugging Face format, or a hub id) it is the bundled one. Each engine has processes of its
own, in turns, so that all see the same machine and none finds another's memory; figures are medians over the rounds. A
first load may make what later ones find (an export, kernels): it is done once before, and not counted.

| column | what is measured |
|---|---|
| tokens/s | `decode`, `sample` and `sampled` one after the other behind 128 tokens, of 1 row and of 8 rows together |
| first token | `prefill`, `sample` and `sampled` of 128 tokens |
| load | `load_engine`, its check of itself included |
| memory | what the process has more of at its peak than before it loads; a device's own memory is not counted |
| off by | logits behind the prompt: the largest difference from those of `numpy`, as a share of their spread |
| same tokens | how many greedy tokens are those of `numpy`, from the first one on |

Without `numpy` among them, the first engine stands in its place.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import gpu
from phases.generator import DEMO_MODEL

PROMPT, BATCH = 128, 8


@dataclass(slots=True)
class Figures:
    """What one process of an engine measured."""

    alone: float  # tokens/s
    together: float  # tokens/s of all rows
    first_token: float  # s
    load: float  # s
    memory: int  # bytes
    tokens: list[int]
    logits: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(DEMO_MODEL), metavar="MODEL")
    parser.add_argument("--engines", nargs="+", choices=gpu.engines(), default=gpu.engines())
    parser.add_argument("--threads", type=int, help="of a decode step; the engine's own choice if not given")
    parser.add_argument("--tokens", type=int, default=64, help="that are decoded in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", choices=gpu.engines(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(asdict(measure(options.model, options.measure, options.threads, options.tokens))))
        return
    found: dict[str, list[Figures]] = {name: [] for name in options.engines}
    for number in range(options.rounds + 1):
        for name in options.engines:
            print(f"{name}: {f'round {number}' if number else 'getting ready'}", file=sys.stderr, flush=True)
            figures = in_a_process(name, options.model, options.threads, options.tokens if number else 1)
            if number:
                found[name].append(figures)
    Console(width=130).print(table(options.model, found))
    if options.json:
        options.json.write_text(json.dumps({name: [asdict(one) for one in many] for name, many in found.items()}))


def in_a_process(engine: str, model: str, threads: int | None, tokens: int) -> Figures:
    command = [sys.executable, __file__, model, "--measure", engine, "--tokens", str(tokens)]
    done = subprocess.run(
        [*command, *(["--threads", str(threads)] if threads else [])], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"the engine {engine} failed: see above")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def measure(model: str, name: str, threads: int | None, tokens: int) -> Figures:
    before, began = peak_memory(), time.perf_counter()
    with gpu.load_engine(model, name, max_batch=BATCH, capacity=PROMPT + tokens + 2, threads=threads) as engine:
        load = time.perf_counter() - began
        prompt = np.random.default_rng(0).integers(0, engine.model.vocab, PROMPT).tolist()
        generate(engine, prompt, 1, 1)  # what is made when it is first needed
        first_token, alone, written, logits = generate(engine, prompt, 1, tokens)
        generate(engine, prompt, BATCH, 1)
        _, together, _, _ = generate(engine, prompt, BATCH, tokens)
        return Figures(
            tokens / alone, BATCH * tokens / together, first_token, load, peak_memory() - before, written,
            logits.tolist(),
        )  # fmt: skip


def generate(
    engine: gpu.Engine, prompt: Sequence[int], batch: int, count: int
) -> tuple[float, float, list[int], npt.NDArray[np.float32]]:
    """Give the seconds of the first token and of all that follow, the first row's tokens, and the prompt's logits."""
    rows = engine.kv_cache.acquire(batch)
    for row in rows:
        engine.write_prompt(row, prompt)
    began = time.perf_counter()
    engine.prefill(rows)
    engine.sample(rows)
    written = [engine.sampled(rows)[0]]
    first = time.perf_counter() - began
    logits = engine.read_logits(rows[0])
    began = time.perf_counter()
    for _ in range(count):
        engine.decode(rows)
        engine.sample(rows)
        written.append(engine.sampled(rows)[0])
    seconds = time.perf_counter() - began
    engine.kv_cache.release(rows)
    return first, seconds, written, logits


def peak_memory() -> int:
    """Give the most bytes that this process has had; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(model: str, found: dict[str, list[Figures]]) -> Table:
    made = Table(
        "engine", "tokens/s, 1 row", "8 rows", "first token", "load", "memory", "off by", "same tokens",
        title=f"{Path(model).name}, {PROMPT} tokens of prompt",
    )  # fmt: skip
    reference = (found.get("numpy") or next(iter(found.values())))[0]
    spread = np.ptp(reference.logits)
    for name, many in found.items():

        def middle(field: str, many: list[Figures] = many) -> float:
            return statistics.median(getattr(one, field) for one in many)

        off = np.abs(np.subtract(many[0].logits, reference.logits)).max() / spread
        made.add_row(
            name, f"{middle('alone'):.1f}", f"{middle('together'):.1f}", f"{middle('first_token') * 1e3:.1f} ms",
            f"{middle('load'):.2f} s", f"{middle('memory') / 2**20:.0f} MiB", f"{off:.1e}",
            f"{agreeing(many[0].tokens, reference.tokens)} of {len(reference.tokens)}",
        )  # fmt: skip
    return made


def agreeing(some: Sequence[int], others: Sequence[int]) -> int:
    return next((n for n, (one, other) in enumerate(zip(some, others, strict=True)) if one != other), len(some))


if __name__ == "__main__":
    main()
