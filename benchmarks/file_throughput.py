"""Throughput of `phasewalk run --input` beside Hugging Face generate: 200 short requests in batches of 1, 4 and 16.

    python benchmarks/file_throughput.py [--requests N] [--repeats N] [--threads N] [--engines NAME ...]

Each request has a prompt of 8 to 24 tokens and wants 8 to 40 new ones, greedily, of random weights of a 32M Llama.
All contenders get the same batches, in turns: 200 requests in batches of 1, then of 4, then of 16. generate pads the
prompts of a batch on the left and draws as many tokens as its longest request wants; only the tokens that were asked
for count. Phasewalk is what the command runs: it reads the requests from a file, and writes and flushes an answer as
soon as its row has ended. Loading the model is counted for nobody. Of generate with one thread and with all, the faster
counts. Figures are medians over the rounds.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from phases import Generator, SamplingParams
from phases.files.answering import answer_all
from phases.files.results import Results
from phases.files.source import read
from phases.generator import DEMO_MODEL

BATCHES, TARGET = (1, 4, 16), 1.5
SHAPE = {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
    "vocab_size": 8192,
}

Request = tuple[list[int], int]
"""A prompt, and how many tokens it wants."""

Contender = Callable[[int], float]
"""Answers all requests in batches of a size, and gives the seconds that it took."""


def requests_of(count: int) -> list[Request]:
    drawn = random.Random(0)
    return [
        ([drawn.randrange(8, SHAPE["vocab_size"]) for _ in range(drawn.randint(8, 24))], drawn.randint(8, 40))
        for _ in range(count)
    ]


def phasewalk(generator: Generator, folder: Path, requests: Sequence[Request]) -> Contender:
    source, output = folder / "requests.jsonl", folder / "results.jsonl"
    with source.open("w") as file:
        for ids, count in requests:
            line = {"token_ids": ids, "params": {"temperature": 0, "max_new_tokens": count, "stop_token_ids": []}}
            file.write(json.dumps(line) + "\n")

    def answer(batch: int) -> float:
        output.unlink(missing_ok=True)
        began = time.perf_counter()
        results = Results(output, [asked.mark for asked in read(source, "")])
        answer_all(generator, read(source, ""), batch_size=batch, give=results.add)
        seconds = time.perf_counter() - began
        results.close()
        answers = [json.loads(line) for line in output.read_text().splitlines()]
        wanted = sorted(count for _, count in requests)
        assert sorted(found["output_tokens"] for found in answers) == wanted, "an answer is short"
        return seconds

    return answer


def generate(model: Any, threads: int, requests: Sequence[Request]) -> Contender:
    def answer(batch: int) -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, len(requests), batch):
                together = requests[first : first + batch]
                longest = max(len(ids) for ids, _ in together)
                padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in together])
                mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in together])
                most = max(count for _, count in together)
                model.generate(
                    padded, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False,
                )  # fmt: skip
        return time.perf_counter() - began

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are taken over them (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="at most, of each contender")
    parser.add_argument("--engines", nargs="+", default=["numpy", "onnx"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=2048, eos_token_id=None, pad_token_id=0)
    model = LlamaForCausalLM(config).eval()
    requests = requests_of(asked.requests)
    tokens = sum(count for _, count in requests)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):  # any will do: requests are token ids
            (folder / file).write_bytes((DEMO_MODEL / file).read_bytes())
        contenders: dict[str, Contender] = {}
        for some in sorted({1, asked.threads}):
            contenders[f"HF generate, {some} thread{'s' * (some > 1)}"] = generate(model, some, requests)
        generators = []
        for engine in asked.engines:
            for some in sorted({1, asked.threads}):
                generator = Generator.from_pretrained(
                    folder, engine, max_batch=max(BATCHES), capacity=128, threads=some, self_check=False
                )
                generators.append(generator)
                generator.defaults = SamplingParams(temperature=0)
                part = folder / f"{engine}{some}"
                part.mkdir()
                threads = f"{some} thread{'s' * (some > 1)}"
                contenders[f"{engine}, {threads}"] = phasewalk(generator, part, requests)
        found: dict[tuple[str, int], list[float]] = {}
        for number in range(asked.repeats):
            for batch in BATCHES:
                for title, contender in contenders.items():
                    print(f"round {number + 1} of {asked.repeats}: batch {batch}, {title}", file=sys.stderr, flush=True)
                    found.setdefault((title, batch), []).append(contender(batch))
                    time.sleep(0.1)  # threads that wait for more work by spinning give up
        for generator in generators:
            generator.close()
    rates = {key: tokens / statistics.median(seconds) for key, seconds in found.items()}
    best = {batch: max(rate for (title, size), rate in rates.items() if title[:2] == "HF" and size == batch)
            for batch in BATCHES}  # fmt: skip
    if asked.json:
        print(json.dumps([{"contender": title, "batch": batch, "tokens_per_s": rate, "times_hf": rate / best[batch]}
                          for (title, batch), rate in rates.items()]))  # fmt: skip
        return
    table = Table(title=f"{len(requests)} requests, {tokens} tokens, 32M Llama, random weights; target {TARGET}x HF")
    table.add_column("contender")
    for batch in BATCHES:
        table.add_column(f"batch {batch}, tokens/s", justify="right")
    for title in contenders:
        cells = [f"{rates[title, batch]:.0f} ({rates[title, batch] / best[batch]:.2f}x)" for batch in BATCHES]
        table.add_row(title, *cells)
    Console().print(table)
    print(
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
