"""Runs every kernel of the CUDA engine once or a few times on small models: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck --report-api-errors no python tests/device/every_kernel.py

Fails if a kernel that was compiled has not run, or a logit is no number.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver

from gpu import Checkpoint, CudaEngine, DeviceError, ModelConfig
from gpu.cuda.driver import CudaDevice

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import write_checkpoint

SIZES = {
    "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 515, "max_position_embeddings": 1024,
}  # fmt: skip
ODD = {"hidden_size": 83, "intermediate_size": 41, "head_dim": 80}
ONE_KEY_HEAD = {"num_key_value_heads": 1, "head_dim": 128, "vocab_size": 131, "tie_word_embeddings": True}
MODELS: list[tuple[str, str | None, dict[str, Any]]] = [  # family, how the checkpoint is stored, sizes
    ("llama", None, SIZES),
    ("llama", "bfloat16", SIZES),
    ("qwen3", "float32", SIZES | ODD),
    ("qwen2", "float16", SIZES | ONE_KEY_HEAD),
]
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
        names = set()
        for code in self._codes:
            library = driver.CUlibrary(int(code.handle))
            _, count = driver.cuLibraryGetKernelCount(library)
            _, kernels = driver.cuLibraryEnumerateKernels(count, library)
            names |= {driver.cuKernelGetName(kernel)[1].decode() for kernel in kernels}
        return names


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
    for batch in (1, 2, 4, 8, 9, 17, ROWS):
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
    for family, dtype, sizes in MODELS:
        for path in ("per-op", "persistent"):
            with tempfile.TemporaryDirectory() as folder:
                write_checkpoint(Path(folder), family, dtype=dtype or "float32", **sizes)
                model, device = ModelConfig.from_folder(Path(folder)), Watched()
                checkpoint = Checkpoint.open(Path(folder), model) if dtype else None
                name = f"{family}, {dtype or 'random'}, {path}"
                try:
                    engine = CudaEngine(model, checkpoint, rows=ROWS, capacity=CAPACITY, decode=path, device=device)
                except DeviceError as error:  # there is none for this model or device
                    print(f"{name}: left out, {error}", flush=True)
                    continue
                with engine:
                    run(engine)
                    made |= device.made()
                launched |= device.launched
            print(name, flush=True)
    print(f"{len(launched)} of {len(made)} kernels ran")
    if missing := made - launched:
        sys.exit(f"never launched: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
