"""What quantised weights cost in quality, on a model of random weights of a named shape, which nothing has to download.

    python benchmarks/quantised_quality.py [--shape 1B] [--engine cuda] [--quantize none int8 fp8] [--tokens 4096]

A checkpoint of that shape is written to a temporary folder (2 bytes a weight), so that every engine quantises the same
weights. The first model of the list draws texts at temperature 1, and all are measured on them, as `phasewalk
perplexity --own-text` does. So the first one's bits are its entropy, and what another one needs more is the
Kullback-Leibler divergence from it.

The weights are normal, each matrix of unit gain, and the final norm makes logits with a standard deviation of 4, so
that a token is about as surprising as one of a trained model. Trained weights have outliers, which a scale for a whole
row suits less: measure a trained model with `phasewalk perplexity`.
"""

import argparse
import json
import math
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu_decode import SHAPES, say
from rich.console import Console
from rich.table import Table

from gpu import ModelConfig, expected_tensors, load_engine
from phases.perplexity import Perplexity, own_texts, perplexity_of

TINY = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": True,
}  # fmt: skip
LOGITS = 4.0  # their standard deviation
START = 1  # the token that each text begins with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1B", choices=["tiny", *SHAPES])
    parser.add_argument("--engine", default="cuda")
    parser.add_argument(
        "--quantize", nargs="+", default=["none", "int8", "fp8"], metavar="KIND", help="none, int8, fp8"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="how many are drawn (default 4096)")
    parser.add_argument("--window", type=int, default=512, help="tokens of a text (default 512)")
    parser.add_argument("--rows", type=int, default=16, help="texts that are fed together (default 16)")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written (default: where others are)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    measured: dict[str, Perplexity] = {}
    texts: list[list[int]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        begin = time.perf_counter()
        write_random_checkpoint(Path(folder), options.shape)
        say(f"{options.shape} written: {time.perf_counter() - begin:.1f} s")
        for kind in options.quantize:
            begin = time.perf_counter()
            quantize = None if kind == "none" else kind
            engine = load_engine(
                folder, options.engine, max_batch=options.rows, capacity=options.window, quantize=quantize
            )
            say(f"{kind} loaded: {time.perf_counter() - begin:.1f} s")
            try:
                texts = texts or own_texts(engine, options.tokens, start=START, length=options.window)
                measured[kind] = perplexity_of(engine, texts, window=options.window)
            finally:
                engine.close()
    rows = [figures(kind, found, next(iter(measured.values()))) for kind, found in measured.items()]
    show(rows, f"{options.shape}, random weights, engine {options.engine}")
    if options.json:
        options.json.write_text(json.dumps({"shape": options.shape, "engine": options.engine, "rows": rows}, indent=1))


def figures(kind: str, found: Perplexity, first: Perplexity) -> dict[str, Any]:
    return {
        "weights": kind,
        "tokens": found.tokens,
        "perplexity": found.perplexity,
        "change": found.perplexity / first.perplexity - 1,
        "divergence_bits": found.bits - first.bits,
        "same_likeliest": found.same_likeliest(first),
        "seconds": found.seconds,
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table("weights", "tokens", "perplexity", "change", "divergence", "same likeliest", "seconds", title=title)
    for row in rows:
        table.add_row(
            row["weights"], f"{row['tokens']:,}", f"{row['perplexity']:.3f}", f"{row['change']:+.3%}",
            f"{row['divergence_bits']:.5f} bits", f"{row['same_likeliest']:.2%}", f"{row['seconds']:.1f}",
        )  # fmt: skip
    Console(width=110).print(table)


def write_random_checkpoint(folder: Path, shape: str) -> None:
    """Write config.json and one file of bfloat16 weights, tensor by tensor: no more than one is in memory."""
    config = {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5, "max_position_embeddings": 1 << 17}
    config |= {"tiny": TINY, **SHAPES}[shape]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = expected_tensors(ModelConfig.from_json(config))
    header, end = dict[str, Any](), 0
    for name, size in tensors.items():
        begin, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    random = np.random.Generator(np.random.SFC64(0))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        for name, size in tensors.items():
            file.write(weights(random, name, size).tobytes())


def weights(random: np.random.Generator, name: str, size: tuple[int, ...]) -> np.ndarray:
    """Draw a tensor, as bfloat16 numbers in 16 bits."""
    if len(size) == 1:
        values = np.full(size, LOGITS if name == "model.norm.weight" else 1.0, np.float32)
    else:
        values = random.standard_normal(size, np.float32)
        values /= np.float32(math.sqrt(size[1]))
    bits = values.view(np.uint32)
    bits += 0x8000  # to the nearest
    return (bits >> 16).astype(np.uint16)


if __name__ == "__main__":
    main()
