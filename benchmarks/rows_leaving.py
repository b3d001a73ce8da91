"""What it gains that a row which has ended leaves its batch: answers of very different lengths, and all as the longest.

    python benchmarks/rows_leaving.py [--lengths N ...] [--repeats N] [--engines NAME ...] [--threads N]

A batch of prompts of 16 tokens is continued greedily, by random weights of a 32M Llama: once with so many new tokens a
row as `--lengths` says, and once with as many as the longest for all, which is what a batch costs that nobody leaves
before its end. Both take the same number of steps. They are measured in turns; figures are medians over the rounds, and
the ratios are medians of each round's. The first results come out while the others go on: when, is told too.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from phases import Generator, RowResult, SamplingParams
from phases.generator import DEMO_MODEL

LENGTHS = (8, 8, 16, 16, 32, 32, 64, 256)
PROMPT = 16  # tokens
SHAPE = {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
    "vocab_size": 8192,
}


def seconds(generator: Generator, lengths: Sequence[int]) -> tuple[float, float]:
    """How long a batch takes, and how long until its first row has ended."""
    prompts = [[8 + (row * 97 + place * 31) % 8000 for place in range(PROMPT)] for row in range(len(lengths))]
    params = [SamplingParams(temperature=0, max_new_tokens=count, stop_token_ids=()) for count in lengths]
    first: list[float] = []

    def finished(row: int, result: RowResult) -> None:
        first.append(time.perf_counter())

    began = time.perf_counter()
    found = generator.generate(prompts, params, on_finished=finished)
    ended = time.perf_counter()
    assert found.output_tokens == list(lengths), "a row is short"
    return ended - began, first[0] - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="new tokens, a row each")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=["numpy", "onnx"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=2048, eos_token_id=None, pad_token_id=0)
    together = [max(asked.lengths)] * len(asked.lengths)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        LlamaForCausalLM(config).save_pretrained(folder)
        (folder / "generation_config.json").unlink()
        for file in ("tokenizer.json", "tokenizer_config.json"):  # any will do: prompts are token ids
            (folder / file).write_bytes((DEMO_MODEL / file).read_bytes())
        for engine in asked.engines:
            with Generator.from_pretrained(
                folder, engine, max_batch=len(together), capacity=PROMPT + max(together), threads=asked.threads
            ) as generator:
                seconds(generator, [2] * len(together))  # what a first run costs is counted for nobody
                rounds = [
                    (seconds(generator, asked.lengths), seconds(generator, together)) for _ in range(asked.repeats)
                ]
            found[engine] = {
                "leaving_s": statistics.median(leaving for (leaving, _), _ in rounds),
                "first_row_s": statistics.median(first for (_, first), _ in rounds),
                "nobody_leaves_s": statistics.median(staying for _, (staying, _) in rounds),
                "gain": statistics.median(staying / leaving for (leaving, _), (staying, _) in rounds),
            }  # fmt: skip
    if asked.json:
        print(json.dumps({"lengths": asked.lengths, "engines": found}))
        return
    computed = sum(together) / sum(asked.lengths)
    table = Table(
        "engine", "rows leave, s", "first row after, s", "nobody leaves, s", "times",
        title=f"rows of {', '.join(map(str, asked.lengths))} tokens; {computed:.1f} times the tokens if all stay; "
        f"{platform.machine()}, {asked.threads} thread{'s' * (asked.threads > 1)}",
    )  # fmt: skip
    for engine, of in found.items():
        table.add_row(
            engine, f"{of['leaving_s']:.2f}", f"{of['first_row_s']:.2f}", f"{of['nobody_leaves_s']:.2f}",
            f"{of['gain']:.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
