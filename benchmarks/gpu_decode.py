"""Decode on an NVIDIA GPU: milliseconds a step, and the share of the bandwidth at which this device reads memory.

    python benchmarks/gpu_decode.py [--shapes 100M 1B 8B] [--batches 1 8] [--contexts 128]

Weights are random and of the named shapes; nothing is downloaded. A step is measured in two ways: `decode` alone, one
graph after the other, and as the machine makes it, `sample`, `decode`, and the wait for the token that was drawn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from gpu import CudaEngine, ModelConfig
from gpu.cuda.driver import CudaDevice

SHAPES = {  # layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied
    "100M": (12, 768, 3072, 12, 12, 64, 32_000, False),
    "1B": (16, 2048, 8192, 32, 8, 64, 128_256, True),
    "8B": (32, 4096, 14336, 32, 8, 128, 128_256, False),
}
STEPS, ROUNDS = 64, 5
READ = """
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4* from, long long count, unsigned* to) {
    unsigned sum = 0;
    const long long step = (long long)gridDim.x * 512 * 8;
    for (long long i = (long long)blockIdx.x * 512 * 8 + threadIdx.x; i < count; i += step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = i + j * 512 < count ? __ldcs(from + i + j * 512) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (sum == 0x12345678u) *to = sum;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["100M", "1B"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128])
    options = parser.parse_args()
    bandwidth, name = read_bandwidth()
    table = Table(
        "shape", "batch", "context", "load s", "prefill ms", "decode ms", "GB/s", "share", "token ms", "host us",
        title=f"{name}: reads {bandwidth / 1e9:.0f} GB/s",
    )  # fmt: skip
    for shape in options.shapes:
        for context in options.contexts:
            begin = time.perf_counter()
            capacity = context + STEPS
            with CudaEngine(config(shape), None, rows=max(options.batches), capacity=capacity) as engine:
                engine.sampled([0])  # all that was launched is done
                loaded = time.perf_counter() - begin
                for batch in options.batches:
                    row = measure(engine, batch, context)
                    rate = engine.bytes_per_token(range(batch)) / row["decode"]
                    table.add_row(
                        shape, f"{batch}", f"{context}", f"{loaded:.1f}", f"{row['prefill'] * 1e3:.2f}",
                        f"{row['decode'] * 1e3:.3f}", f"{rate / 1e9:.0f}", f"{rate / bandwidth:.0%}",
                        f"{row['token'] * 1e3:.3f}", f"{row['host'] * 1e6:.0f}",
                    )  # fmt: skip
                print(shape, context, engine.graph_counts(), engine.environment(), flush=True)
    Console(width=140).print(table)


def config(shape: str) -> ModelConfig:
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied = SHAPES[shape]
    return ModelConfig.from_json(
        {
            "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": hidden,
            "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": head_dim, "vocab_size": vocab, "tie_word_embeddings": tied, "rope_theta": 5e5,
            "max_position_embeddings": 1 << 17,
        }
    )  # fmt: skip


def measure(engine: CudaEngine, batch: int, context: int) -> dict[str, float]:
    """Feed prompts, then take steps; medians, in seconds."""
    rows = engine.kv_cache.acquire(batch)
    prompt = np.random.default_rng(0).integers(0, engine.model.vocab, context).tolist()

    def fill() -> None:
        for row in rows:
            engine.kv_cache.truncate(row, 0)
            engine.write_prompt(row, prompt)
        engine.prefill(rows)
        engine.read_logits(rows[-1])

    def decode() -> None:
        back()
        for _ in range(STEPS):
            engine.decode(rows)
        engine.read_logits(rows[-1])

    def back() -> None:
        for row in rows:
            engine.kv_cache.truncate(row, context)

    launched: list[float] = []

    def tokens() -> None:
        back()
        for _ in range(STEPS):
            begin = time.perf_counter()
            engine.sample(rows)
            engine.decode(rows)
            launched.append(time.perf_counter() - begin)
            engine.sampled(rows)
        engine.read_logits(rows[-1])

    fill()
    found = {"prefill": median(fill)}
    for work in (tokens, decode):  # records the graphs
        work()
    found |= {"decode": median(decode) / STEPS, "token": median(tokens) / STEPS, "host": statistics.median(launched)}
    engine.kv_cache.release(rows)
    return found


def median(work: Callable[[], None]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def read_bandwidth() -> tuple[float, str]:
    """Give the bytes per second at which a plain kernel reads 4 GiB, and the name of the device."""
    device = CudaDevice()
    try:
        size = min(4 << 30, device.memory_free() // 2)
        memory, to = device.allocate(size), device.allocate(4)
        device.build(READ, ())
        best = 0.0
        for _ in range(5):
            event = device.record()
            event.sync()
            begin = time.perf_counter()
            for _ in range(10):
                device.launch("read_all", (device.processors * 4, 1, 1), 512, memory, size // 16, to)
            device.record().sync()
            best = max(best, 10 * size / (time.perf_counter() - begin))
        return best, str(device.environment()["device"])
    finally:
        device.close()


if __name__ == "__main__":
    main()
