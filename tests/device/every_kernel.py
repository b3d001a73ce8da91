"""Runs every kernel of the CUDA engine once or a few times on small models: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck --report-api-errors no python tests/device/every_kernel.py

Fails if a kernel that was compiled has not run, or a logit is no number.
"""

import sys
from typing import Any

import numpy as np
from cuda.bindings import driver
from soak import decode_paths

from gpu import CudaEngine, ModelConfig
from gpu.cuda.driver import CudaDevice

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 515, "max_position_embeddings": 1024,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "qwen3, odd sizes": SIZES
    | {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 83, "intermediate_size": 41, "head_dim": 80},
    "qwen2, one key head": SIZES
    | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 131},
}
ROWS, CAPACITY = 40, 576


class Watched(CudaDevice):
    """Knows which kernels were made and which were launched."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: set[str] = set()

    def launch(self, kernel: str, *arguments: Any, **options: Any) -> None:
        self.launched.add(kernel)
        super().launch(kernel, *arguments, **options)

    def made(self) -> set[str]:
        library = driver.CUlibrary(int(self._code.handle))
        _, count = driver.cuLibraryGetKernelCount(library)
        _, kernels = driver.cuLibraryEnumerateKernels(count, library)
        return {driver.cuKernelGetName(kernel)[1].decode() for kernel in kernels}


def run(engine: CudaEngine) -> None:
    """Prompts long and short, all the batch sizes that have kernels of their own, and all ways of sampling."""
    rows = engine.kv_cache.acquire(ROWS)
    random = np.random.default_rng(0)
    for row in rows:
        length = 520 if row == 0 else 1 + row % 7
        engine.write_prompt(row, random.integers(0, engine.model.vocab, length).tolist())
        engine.set_sampling(
            row, temperature=float(row % 3) / 2, top_k=(0, 5)[row % 2], top_p=(1.0, 0.9)[row // 2 % 2],
            min_p=(0.0, 0.01)[row // 4 % 2], seed=row,
        )  # fmt: skip
    engine.prefill(rows[:1])
    engine.prefill(rows[1:3])
    engine.prefill(rows[3:])
    for batch in (1, 2, 8, 9, 17, ROWS):
        for _ in range(2):
            engine.sample(rows[:batch])
            engine.decode(rows[:batch])
            engine.sampled(rows[:batch])
    for row in rows:
        assert np.isfinite(engine.read_logits(row)).all()
    engine.copy_row(rows[0], rows[1])
    engine.import_kv(rows[2], 0, engine.export_kv(rows[1], 0, 9))


def main() -> None:
    made: set[str] = set()
    launched: set[str] = set()
    paths = decode_paths()
    for name, config in MODELS.items():
        for chosen in paths:
            device, model = Watched(), ModelConfig.from_json(config)
            with CudaEngine(model, None, rows=ROWS, capacity=CAPACITY, device=device, **chosen) as engine:
                run(engine)
                made |= device.made()
            launched |= device.launched
            print(", ".join([name, *chosen.values()]), flush=True)
    print(f"{len(launched)} of {len(made)} kernels ran")
    if missing := made - launched:
        sys.exit(f"never launched: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
