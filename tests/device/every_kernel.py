"""Runs every kernel of the CUDA engine once or a few times on small models: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck --report-api-errors no python tests/device/every_kernel.py
    compute-sanitizer --tool racecheck --report-api-errors no python tests/device/every_kernel.py --older

Fails if a kernel that was compiled has not run, or a logit is no number. With --older only those run that devices
before compute capability 9.0 have as well: racecheck knows barriers of all threads, but no signals that a copy gives.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver

from gpu import Checkpoint, CudaEngine, DeviceError, ModelConfig, Penalties
from gpu.cuda.driver import CudaDevice

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import write_checkpoint

SIZES = {
    "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 515, "max_position_embeddings": 1024,
}  # fmt: skip
ODD = {"hidden_size": 83, "intermediate_size": 41, "head_dim": 80}
ONE_KEY_HEAD = {"num_key_value_heads": 1, "head_dim": 128, "vocab_size": 131, "tie_word_embeddings": True}
LARGE = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_hidden_layers": 1,
    "max_position_embeddings": 2112,
}  # fmt: skip
MODELS: list[tuple[str, str | None, dict[str, Any]]] = [  # family, how the checkpoint is stored, sizes
    ("llama", None, SIZES),
    ("llama", "bfloat16", SIZES),
    ("qwen3", "float32", SIZES | ODD),
    ("qwen2", "float16", SIZES | ONE_KEY_HEAD),
    ("llama", "bfloat16", SIZES | LARGE),  # the tiles of large products
]
ROWS, ROOM = 40, 56  # tokens beyond the longest prompt
OLDER = (8, 9)  # compute capability whose kernels every device can run


class Watched(CudaDevice):
    """Knows which kernels were made and which were launched."""

    def __init__(self, *, as_older: bool) -> None:
        super().__init__()
        self.launched: set[str] = set()
        if as_older and self.capability > OLDER:
            self.capability = OLDER

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


def run(engine: CudaEngine, longest: int) -> None:
    """Prompts long and short, all the batch sizes that have kernels of their own, and all ways of sampling."""
    rows = engine.kv_cache.acquire(ROWS)
    random = np.random.default_rng(0)
    for row in rows:
        length = longest if row == rows[0] else 520 if row == rows[1] else 1 + row % 7
        engine.write_prompt(row, random.integers(0, engine.model.vocab, length).tolist())
        engine.set_sampling(
            row, temperature=float(row % 3) / 2, top_k=(0, 5)[row % 2], top_p=(1.0, 0.9)[row // 2 % 2],
            min_p=(0.0, 0.01)[row // 4 % 2], seed=row,
        )  # fmt: skip
        if row % 3 == 0:
            engine.set_penalties(row, Penalties(repetition=1.2, no_repeat_ngram=2, forbidden=(1,)))
            engine.write_history(row, 0, [row % 7] * length)
    engine.prefill(rows[:1])
    engine.prefill(rows[1:2])
    engine.prefill(rows[2:4])
    engine.prefill(rows[4:])
    for batch in (1, 2, 4, 8, 9, 17, ROWS):
        for _ in range(2):
            engine.sample(rows[:batch])
            engine.decode(rows[:batch])
            engine.sampled(rows[:batch])
    for row in rows:
        assert np.isfinite(engine.read_logits(row)).all()
    engine.mask_logits(rows[0], np.full(-(-engine.model.vocab // 32), 0x5555_5555, np.uint32))
    assert np.isneginf(engine.read_logits(rows[0])[1::2]).all()
    engine.copy_row(rows[0], rows[1])
    engine.import_kv(rows[2], 0, engine.export_kv(rows[1], 0, 9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--older", action="store_true", help="only the kernels that older devices have as well")
    ways = (
        (("per-op", True),)
        if parser.parse_args().older
        else (("per-op", False), ("per-op", True), ("persistent", False))
    )
    made: set[str] = set()
    launched: set[str] = set()
    for family, dtype, sizes in MODELS:
        for path, as_older in ways:
            with tempfile.TemporaryDirectory() as folder:
                write_checkpoint(Path(folder), family, dtype=dtype or "float32", **sizes)
                model, device = ModelConfig.from_folder(Path(folder)), Watched(as_older=as_older)
                checkpoint = Checkpoint.open(Path(folder), model) if dtype else None
                longest = sizes["max_position_embeddings"] - ROOM
                name = f"{family}, {dtype or 'random'}, hidden {model.hidden}, {path}{', as older' * as_older}"
                try:
                    engine = CudaEngine(
                        model, checkpoint, rows=ROWS, capacity=longest + ROOM, decode=path, device=device
                    )
                except DeviceError as error:  # there is none for this model or device
                    print(f"{name}: left out, {error}", flush=True)
                    continue
                with engine:
                    run(engine, longest)
                    made |= device.made()
                launched |= device.launched
            print(name, flush=True)
    print(f"{len(launched)} of {len(made)} kernels ran")
    if missing := made - launched:
        sys.exit(f"never launched: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
