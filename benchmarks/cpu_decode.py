"""Decode speed of the NumPy engine beside Hugging Face generate, as a share of the memory's read bandwidth.

    python benchmarks/cpu_decode.py [--threads N] [--repeats N] [--json FILE]

Both run the same random weights, float32, batch 1, greedy, in turns: in each round the single-thread read bandwidth is
measured, Phasewalk decodes, and generate decodes with one and with all threads, so that all see the same machine.
Figures are medians over the rounds; generate counts with the number of threads that suits it best.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Random weights give no sensible text, and transformers need not say so.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import gpu

PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama shape to measure, and the targets for it."""

    name: str
    config: dict[str, int]
    new_tokens: int
    times_generate: float


SHAPES = [
    Shape(
        name="32M",
        config={
            "num_hidden_layers": 8,
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
            "vocab_size": 8192,
        },
        new_tokens=96,
        times_generate=2.3,
    ),
    Shape(
        name="160M",
        config={
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": 32000,
        },
        new_tokens=40,
        times_generate=1.6,
    ),
]


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one shape."""

    shape: str
    parameters: int
    threads: int  # of Phasewalk's decode step
    phasewalk: float  # tokens/s
    generate: float  # tokens/s
    generate_threads: int
    ratio: float
    ratio_target: float
    read: float  # bytes/s that the decode steps read
    bandwidth: float  # bytes/s, one thread
    share: float
    same_tokens: bool


def phasewalk_run(engine: gpu.Engine, prompt: np.ndarray, new_tokens: int) -> tuple[list[int], float, float]:
    """Decode greedily; give the tokens, tokens/s of the decode steps, and the bytes/s that they read."""
    rows = engine.kv_cache.acquire(1)
    [row] = rows
    engine.write_prompt(row, prompt)
    engine.prefill(rows)
    engine.sample(rows)
    tokens = list(engine.sampled(rows))
    read = 0
    start = time.perf_counter()
    for _ in range(new_tokens):
        engine.decode(rows)
        engine.sample(rows)
        tokens += engine.sampled(rows)
        read += engine.bytes_per_token(rows)
    seconds = time.perf_counter() - start
    engine.kv_cache.release(rows)
    return tokens, new_tokens / seconds, read / seconds


class _Clock:
    """A streamer that notes when each token came, so that generate's prefill is not counted as decode."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generate_run(model: Any, prompt: np.ndarray, new_tokens: int, threads: int) -> tuple[list[int], float]:
    """Decode greedily with transformers; give the tokens and tokens/s of the decode steps."""
    torch.set_num_threads(threads)
    ids = torch.from_numpy(prompt[None].astype(np.int64))
    clock = _Clock()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens + 1,
            min_new_tokens=new_tokens + 1,
            do_sample=False,
            streamer=clock,
        )
    # The first entry is the prompt, the second the token that prefill gave.
    return out[0, len(prompt) :].tolist(), new_tokens / (clock.times[-1] - clock.times[1])


def measure(shape: Shape, *, repeats: int) -> list[Result]:
    """Run all contenders in turns on one checkpoint of this shape; one result for each of Phasewalk's thread counts."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape.config, max_position_embeddings=2048, eos_token_id=None, pad_token_id=0)
    model = LlamaForCausalLM(config).eval()
    prompt = np.random.default_rng(0).integers(0, shape.config["vocab_size"], PROMPT_TOKENS)
    choices = sorted({1, os.cpu_count() or 1})
    ours: dict[int, list[float]] = {choice: [] for choice in choices}
    reads: dict[int, list[float]] = {choice: [] for choice in choices}
    theirs: dict[int, list[float]] = {choice: [] for choice in choices}
    bandwidths: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engines = {c: gpu.load_engine(Path(folder), max_batch=1, capacity=512, threads=c) for c in choices}
    for choice in choices:
        phasewalk_run(engines[choice], prompt, 4)
        generate_run(model, prompt, 4, choice)
    same = True
    for _ in range(repeats):
        bandwidths.append(gpu.measure_read_bandwidth())
        for choice in choices:
            tokens, speed, read = phasewalk_run(engines[choice], prompt, shape.new_tokens)
            ours[choice].append(speed)
            reads[choice].append(read)
            other_tokens, speed = generate_run(model, prompt, shape.new_tokens, choice)
            theirs[choice].append(speed)
            same = same and tokens == other_tokens
    median = statistics.median
    best = max(choices, key=lambda choice: median(theirs[choice]))
    return [
        Result(
            shape=shape.name,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            threads=choice,
            phasewalk=median(ours[choice]),
            generate=median(theirs[best]),
            generate_threads=best,
            ratio=median(ours[choice]) / median(theirs[best]),
            ratio_target=shape.times_generate,
            read=median(reads[choice]),
            bandwidth=median(bandwidths),
            # Round by round, since the bandwidth of a shared machine changes from one second to the next.
            share=median(read / bandwidth for read, bandwidth in zip(reads[choice], bandwidths, strict=True)),
            same_tokens=same,
        )
        for choice in choices
    ]


def show(results: list[Result], *, repeats: int) -> None:
    """Print the results as a table."""
    table = Table(
        title=f"Decode, float32, batch 1 (medians of {repeats} rounds; reads and share against one thread's bandwidth)",
        caption=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}, "
        f"torch {torch.__version__}; python benchmarks/cpu_decode.py",
    )
    for column in ("shape", "phasewalk", "HF generate", "ratio", "target", "reads", "bandwidth", "share", "tokens"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for result in results:
        table.add_row(
            f"{result.shape} ({result.parameters / 1e6:.1f}M)",
            f"{result.phasewalk:.1f} tok/s ({result.threads} thr)",
            f"{result.generate:.1f} tok/s ({result.generate_threads} thr)",
            f"{result.ratio:.2f}x",
            f"{result.ratio_target}x",
            f"{result.read / 1e9:.1f} GB/s",
            f"{result.bandwidth / 1e9:.1f} GB/s",
            f"{result.share:.0%}",
            "same" if result.same_tokens else "DIFFER",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    """Measure every shape and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are taken over them (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    results = [result for shape in SHAPES for result in measure(shape, repeats=arguments.repeats)]
    show(results, repeats=arguments.repeats)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
