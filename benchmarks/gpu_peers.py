"""What torch does on this device: its bf16 matrix product, and generate of transformers on the shapes of gpu_decode.py.

    echo go | python benchmarks/gpu_peers.py [100M 1B 8B]

Prints a line of JSON for each figure as it comes, so that whoever asks can stop waiting at any time. The peers wait for
a line of input: until then it only imports, which takes long and leaves the device alone.
"""

import json
import os
import statistics
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from gpu_decode import NEW, PROMPT, SHAPES

SIZE, REPEATS = 8192, 20
PEERS: dict[str, dict[str, Any]] = {
    "eager": {"max_time": 8.0},  # as many tokens as come in that time: one takes as long as another
    "static+compile": {"cache_implementation": "static"},
}
WARM_UP = {"eager": 8, "static+compile": NEW}  # tokens; what is compiled is so for one size of the cache


def tell(name: str, **found: Any) -> None:
    print(json.dumps({"name": name} | found), flush=True)


def matrix_rate() -> float:
    """Operations per second of a large product of random numbers; the median, once the device is warm."""
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(2 * REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.matmul(a, b)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * SIZE**3 / statistics.median(times[REPEATS:])


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def token_seconds(model: Any, new_tokens: int, **options: Any) -> float:
    """Seconds from a token to the next, the median: prefill is not counted."""
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT), device="cuda")
    clock = Clock()
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False, streamer=clock, **options,
        )  # fmt: skip
    return statistics.median(after - before for before, after in pairwise(clock.times[1:]))  # the first is the prompt


def main() -> None:
    began = time.perf_counter()
    if not torch.cuda.is_available():
        tell("matrix", missing="torch sees no device")
        return
    tell("matrix", value=matrix_rate())
    torch.cuda.empty_cache()
    shapes = sys.argv[1:]
    if not shapes:
        return
    if find_spec("transformers") is None:
        tell("peers", missing="transformers is not installed")
        return
    import_module("torch._dynamo")
    from transformers import LlamaConfig, LlamaForCausalLM

    tell("imports", after=round(time.perf_counter() - began, 1))
    sys.stdin.readline()
    torch.set_default_dtype(torch.bfloat16)
    for shape in shapes:
        began = time.perf_counter()
        with torch.device("cuda"):
            config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, eos_token_id=None, pad_token_id=0)
            model = LlamaForCausalLM(config).eval()
        for peer, options in PEERS.items():
            try:
                token_seconds(model, WARM_UP[peer], **options)
                tell(f"{shape} warm", after=round(time.perf_counter() - began, 1))
                tell(f"{shape} transformers, {peer}", value=token_seconds(model, NEW, **options))
            except Exception as error:  # whatever a peer fails with, the others are still measured
                tell(f"{shape} {peer}", missing=f"{type(error).__name__}: {error}"[:300])
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
