"""Time to first token of a prompt whose beginning is in the prompt cache, beside the same prompt computed whole.

    python benchmarks/prompt_cache.py [MODEL] [--engines NAME ...] [--threads N] [--cached N] [--new N] [--repeats N]

Without MODEL (a folder in Hugging Face format) it is a Llama of 160M with random weights. A first run leaves a prompt
of 1,000 tokens in the cache. Then, in turns, the same engine answers those and 20 tokens of each round's own, with the
cache and without it. What is timed is a whole `generate` of one token, what it costs to look up, to take over and to
keep included. Figures are medians over the rounds; the target is a tenth.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from gpu import ModelConfig, engines, expected_tensors, load_engine
from phases import Generator, SamplingParams
from phases.generator import DEMO_MODEL
from phases.prompt_cache import PromptCache
from phases.resting_rows import RestingRows
from phases.tokenizer import Tokenizer

TARGET = 0.1
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 12, "hidden_size": 768,
    "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 3072, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PARAMS = SamplingParams(temperature=0, max_new_tokens=1, stop_token_ids=())


def write_random(folder: Path) -> Path:
    """Write a model of random weights, with a tokenizer of which nothing is asked."""
    (folder / "config.json").write_text(json.dumps(SHAPE))
    random = np.random.default_rng(0)
    shapes = expected_tensors(ModelConfig.from_folder(folder))
    save_file(
        {
            name: random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((DEMO_MODEL / file).read_bytes())
    return folder


def measure(folder: Path, engine: str, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds to a first token, with the cache and without, and the tokens that were found there."""
    capacity = asked.cached + asked.new + 8
    with closing(
        load_engine(folder, engine, max_batch=1, capacity=capacity, threads=asked.threads, self_check=False)
    ) as loaded:
        random, vocab = np.random.default_rng(1), loaded.model.vocab
        told = random.integers(3, vocab, asked.cached).tolist()
        tokenizer = Tokenizer.from_pretrained(folder)
        without = Generator(loaded, tokenizer)
        cache = PromptCache(loaded, limit=10**10) if loaded.synchronous else RestingRows(loaded)
        cached = Generator(loaded, tokenizer, prompt_cache=cache)
        cached.generate(told, PARAMS)
        seconds: dict[Generator, list[float]] = {without: [], cached: []}
        for number in range(asked.repeats + 1):
            prompt = [*told, *random.integers(3, vocab, asked.new).tolist()]
            results = []
            for generator, taken in seconds.items():
                began = time.perf_counter()
                results.append(generator.generate(prompt, PARAMS))
                if number:  # the first round is to warm up
                    taken.append(time.perf_counter() - began)
                time.sleep(0.05)  # threads that wait for more work by spinning give up
            assert results[0] == results[1], "the cache changed a token"
        reused = results[1].reused_tokens[0]
    whole, less = (statistics.median(taken) for taken in seconds.values())
    return {"without_s": whole, "with_s": less, "ratio": less / whole, "reused_tokens": reused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--engines", nargs="+", choices=engines(), default=engines())
    parser.add_argument("--threads", type=int, help="the engine's own choice if not given")
    parser.add_argument("--cached", type=int, default=1000, help="tokens of which the cache may hold something")
    parser.add_argument("--new", type=int, default=20, help="tokens that are each round's own")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are taken over them (default 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.model:
            folder = Path(asked.model)
        else:
            os.environ["XDG_CACHE_HOME"] = name  # so that what is made of the weights goes with them
            folder = write_random(Path(name))
        found = {}
        for engine in asked.engines:
            print(f"measuring {engine}", file=sys.stderr, flush=True)
            found[engine] = measure(folder, engine, asked)
    if asked.json:
        print(json.dumps(found))
        return
    model = asked.model or "160M Llama, random weights"
    table = Table(title=f"{model}: {asked.cached} tokens in the cache, {asked.new} new; target {TARGET}")
    for title in ("engine", "tokens found", "first token without, ms", "with, ms", "ratio"):
        table.add_column(title, justify="left" if title == "engine" else "right")
    for engine, one in found.items():
        table.add_row(
            engine, str(one["reused_tokens"]), f"{one['without_s'] * 1e3:.1f}", f"{one['with_s'] * 1e3:.1f}",
            f"{one['ratio']:.3f}",
        )  # fmt: skip
    Console().print(table)
    print(f"{platform.platform()}, Python {platform.python_version()}, NumPy {np.__version__}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
