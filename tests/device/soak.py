"""Takes the same steps again and again on a GPU, at several batch sizes, and compares every bit of every step.

    python tests/device/soak.py [--steps 20000] [--large-steps 1000] [--decode per-op|persistent]

A walk of some hundred sampled steps is taken once and noted: tokens, logits, and what came into the cache. Then it is
taken again from the same place until the steps are done. In a race, or with a sum whose order is left to chance, some
step comes out otherwise. The small model has every row's logits compared after every step, the large one of the shape
of Llama 3.2 1B a row's, in turn.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from gpu import CudaEngine, DeviceError, ModelConfig

PATHS = ("per-op", "persistent")
BATCHES = (1, 4, 8, 32)
WHOLE_STEPS = (1, 4, 8)  # the batches that one kernel takes a step of
WALK = 250
PROMPT = 30  # tokens of the shortest prompt; each row's is longer than the one before, past a split of the attention
FIXED = {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5, "max_position_embeddings": 4096}
SMALL = FIXED | {
    "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4099, "tie_word_embeddings": True,
}  # fmt: skip
LARGE = FIXED | {
    "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="of the small model, at each batch size")
    parser.add_argument("--large-steps", type=int, default=1_000, help="of the large one")
    parser.add_argument("--decode", choices=PATHS, nargs="+", default=PATHS, help="by which of the engine's paths")
    options = parser.parse_args()
    different = 0
    for name, config, steps, every_row in (
        ("small", SMALL, options.steps, True),
        ("1B", LARGE, options.large_steps, False),
    ):
        for chosen in decode_paths(options.decode) if steps else ():
            model = ModelConfig.from_json(config)
            capacity = PROMPT + 9 * max(BATCHES) + WALK + 1
            with CudaEngine(model, None, rows=max(BATCHES), capacity=capacity, **chosen) as engine:
                for batch in WHOLE_STEPS if chosen["decode"] == "persistent" else BATCHES:
                    begin = time.perf_counter()
                    found = soak(engine, batch, steps, every_row=every_row)
                    different += len(found)
                    path = engine.facts()["decode path"]
                    what = f"{len(found)} DIFFER, first at {found[0]}" if found else "every bit repeats"
                    seconds = time.perf_counter() - begin
                    print(f"{name}, {path}, batch {batch}: {steps} steps, {what} ({seconds:.1f} s)", flush=True)
    sys.exit(1 if different else 0)


def decode_paths(asked: Sequence[str]) -> list[dict[str, str]]:
    """Give what to load the engine with, for each of these paths that runs here."""
    model, found = ModelConfig.from_json(SMALL), []
    for path in asked:
        try:
            CudaEngine(model, None, rows=1, capacity=64, decode=path).close()
            found.append({"decode": path})
        except (ValueError, DeviceError) as error:  # the device has no such path
            print(f"{path} is left out: {error}", flush=True)
    return found


def soak(engine: CudaEngine, batch: int, steps: int, *, every_row: bool) -> list[str]:
    """Take steps; give those that differed from the first walk, by number, each named once."""
    rows = engine.kv_cache.acquire(batch)
    random = np.random.default_rng(batch)
    poison(engine)
    starts = []
    for number, row in enumerate(rows):
        prompt = random.integers(0, engine.model.vocab, PROMPT + 9 * number).tolist()
        engine.write_prompt(row, prompt)
        engine.set_sampling(row, temperature=0.8, top_k=0, top_p=0.95, min_p=0.0, seed=row)
        starts.append(len(prompt))
    engine.prefill(rows)
    for row in rows:
        engine.keep_logits(row)

    def walk(length: int) -> Iterator[list[bytes]]:
        for row, start in zip(rows, starts, strict=True):
            engine.kv_cache.truncate(row, start)
            engine.restore_logits(row)
        for number in range(length):
            engine.sample(rows)
            engine.decode(rows)
            seen = rows if every_row else [rows[number % batch]]
            yield [np.array(engine.sampled(rows)).tobytes(), *(engine.read_logits(row).tobytes() for row in seen)]
        yield [engine.export_kv(row, 0, start + length).tobytes() for row, start in zip(rows, starts, strict=True)]

    length = min(WALK, steps)
    expected = list(walk(length))
    assert all(np.isfinite(engine.read_logits(row)).all() for row in rows)
    different = []
    for again in range(max(1, -(-steps // length) - 1)):
        for number, (found, first) in enumerate(zip(walk(length), expected, strict=True)):
            if found != first:
                what = "the cache" if number == length else f"step {number}"
                different.append(f"{what} of walk {again + 2}")
    engine.kv_cache.release(rows)
    return different


def poison(engine: CudaEngine) -> None:
    """Fill the cache with NaN: what is read before it was written spreads, and is seen."""
    nothing = np.full_like(engine.export_kv(0, 0, engine.kv_cache.capacity), np.nan)
    for row in range(engine.kv_cache.rows):
        engine.import_kv(row, 0, nothing)


if __name__ == "__main__":
    main()
