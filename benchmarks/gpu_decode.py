"""The CUDA engine against its targets: decode, the whole machine, prefill, long contexts, and Hugging Face beside it.

    python benchmarks/gpu_decode.py [--shapes 100M 1B 8B] [--parts decode machine timeline prefill context peers]
                                    [--quantize int8|fp8] [--json FILE]

Weights are random and of the named shapes; nothing is downloaded. All figures are of one run, medians, and stand in one
table at the end, each beside its target. Bandwidth is that of the kernel which only reads, in `measuring.cu`; the rate
of matrix products is torch's, as are the peers (`gpu_peers.py`), and without torch both are left out.

| part | what is measured |
|---|---|
| decode | `decode` one after the other, nobody waiting, behind 128 tokens, in batches of 1, 8 and 32; `sample` alone |
| machine | a `Generator`: six phases, a journal on disk, streaming; 128 tokens of prompt, 256 new, greedy, batch 1 |
| timeline | the same once more, the device's clock read before and after each graph: how long it rests between them |
| prefill | 2,048 tokens of one row: the work of all products and of causal attention, over the time |
| context | `decode` behind 128, 1,024 and 8,192 tokens, and what the most cost against the fewest |
| peers | generate of transformers, eager, and with a static cache and torch.compile |
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as Words
from tokenizers import decoders, models, pre_tokenizers

from gpu import CudaEngine, ModelConfig
from gpu.cuda.device import Device, Graph, Module, Moment
from gpu.cuda.driver import CudaDevice
from gpu.cuda.paths import PER_OP, PERSISTENT
from gpu.cuda.shape import Shape, measuring_source
from gpu.cuda.watchdog import Watchdog
from phases import Generator, SamplingParams
from phases.tokenizer import Tokenizer
from phases.tokenizer_files import FastBackend

SHAPES: dict[str, dict[str, Any]] = {
    "100M": {
        "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 64, "vocab_size": 32_000, "tie_word_embeddings": False,
    },
    "1B": {
        "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "8B": {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256, "tie_word_embeddings": False,
    },
}  # fmt: skip
PARTS = ("decode", "machine", "timeline", "prefill", "context", "peers")
PROMPT, NEW, LONG_PROMPT = 128, 256, 2048
CONTEXTS = (PROMPT, 1024, 8192)
STEPS, ROUNDS, SECONDS = 64, 5, 5.0  # of a measurement; rounds end early rather than take longer
BATCHES = (1, 8, 32)
LONG_BATCHES = (1, 8)
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
DRAWN: dict[str, dict[str, Any]] = {
    "greedily": {},
    "at temperature 1": {"temperature": 1.0},
    "with top_p 0.9": {"temperature": 0.6, "top_p": 0.9},
    "with top_k 50, top_p 0.9": {"temperature": 0.6, "top_k": 50, "top_p": 0.9},
}

# Targets. Milliseconds a token with the whole machine, by card; shares are of what this device does in the same run.
TOKEN_MS = {"H100": {"100M": 0.23, "1B": 0.90, "8B": 5.0}, "H200": {"100M": 0.21, "1B": 0.72, "8B": 3.75}}
TOKEN_MS_OF_CODES = {"H200": {"1B": 0.45, "8B": 2.1}}  # with --quantize
GOAL_TOKEN_MS = {"100M": 0.12}
GOAL_BANDWIDTH = {"1B": 0.92, "8B": 0.96}
BATCH_RATIO = {("1B", 8): 1.15, ("1B", 32): 1.6}
HOST_SHARE = {"100M": 0.10, "1B": 0.02}
FIRST_TOKEN_MS = {"1B": 5.0}
REST_US = 5.0
PREFILL_SHARE = {"8B": 0.60}
CACHE_BANDWIDTH = 0.80


@dataclass(slots=True)
class Figure:
    """One measured number, and what it should be."""

    shape: str
    what: str
    value: float
    unit: str = "ms"
    target: float | None = None
    more_is_better: bool = False
    goal: bool = False  # a wish beyond the target

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value <= self.target

    def cells(self) -> tuple[str, ...]:
        if self.target is None:
            return self.shape, self.what, self._text(self.value), "", "", ""
        verdict = ("[green]reached" if self.reached else "[red]missed") + (" (goal)" if self.goal else "")
        ratio = f"{self.value / self.target:.2f}" if self.value > 0 else ""  # below nothing is noise
        sign = "≥" if self.more_is_better else "≤"
        return self.shape, self.what, self._text(self.value), f"{sign} {self._text(self.target)}", ratio, verdict

    def _text(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.4g} {self.unit}"


@dataclass(slots=True)
class Rates:
    """What the device does at best."""

    device: str
    read: float  # bytes/s
    matrix: float | None  # bf16 operations/s

    @property
    def card(self) -> str | None:
        return next((card for card in TOKEN_MS if card in self.device), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["100M", "1B"], choices=SHAPES)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--decode", choices=("per-op", "persistent"), help="the engine's choice if not given")
    parser.add_argument(
        "--quantize", choices=("int8", "fp8"), help="what weights are rounded to; bfloat16 if not given"
    )
    parser.add_argument("--peer-seconds", type=int, default=40, help="time for the peers of a shape (default 40)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    with ExitStack() as stack:
        torch = None
        if {"prefill", "peers"} & set(options.parts):
            if find_spec("torch") is None:
                say("no rate of matrix products and no peers: torch is not installed")
            else:
                torch = stack.enter_context(Torch(options.shapes if "peers" in options.parts else []))
        matrix = torch.matrix_rate() if torch else None
        with closing(CudaDevice()) as bare:
            read = read_bandwidth(bare, min(4 << 30, bare.memory_free() // 32 * 16))
            device = str(bare.environment()["device"])
        rates = Rates(device, read, matrix)
        figures, paths = [], {}
        for shape in options.shapes:
            with loaded(shape, options.parts, options.decode, options.quantize) as engine:
                for part, measure in MEASURES.items():
                    if part in options.parts:
                        begin = time.perf_counter()
                        figures += measure(engine, shape, rates)
                        say(f"{shape} {part}: {time.perf_counter() - begin:.1f} s")
                paths[shape] = str(engine.facts()["decode path"])
                say(f"{shape}: {engine.facts()}")
        if torch and "peers" in options.parts:
            for name, seconds in torch.peers(options.peer_seconds * len(options.shapes)):
                shape, peer = name.split(maxsplit=1)
                figures.append(Figure(shape, f"a token, {peer}", seconds * 1e3))
    show(figures, rates)
    if options.json:
        found = {"device": device, "read": read, "matrix": matrix, "paths": paths, "quantize": options.quantize}
        options.json.write_text(json.dumps(found | {"figures": [asdict(figure) for figure in figures]}, indent=1))


def show(figures: Sequence[Figure], rates: Rates) -> None:
    matrix = "" if rates.matrix is None else f", {rates.matrix / 1e12:.0f} TFLOP/s in bf16 products"
    title = f"{rates.device}: reads {rates.read / 1e9:.0f} GB/s{matrix}"
    table = Table("shape", "figure", "measured", "target", "ratio", "", title=title)
    for figure in figures:
        table.add_row(*figure.cells())
    judged = [figure.reached for figure in figures if figure.reached is not None]
    Console(width=130).print(table)
    say(f"{sum(judged)} of {len(judged)} targets and goals reached")


# --- the engine -----------------------------------------------------------------------------------------------------


def loaded(shape: str, parts: Sequence[str], decode: str | None, quantize: str | None) -> CudaEngine:
    capacity = (max(CONTEXTS) if "context" in parts else LONG_PROMPT) + NEW
    begin = time.perf_counter()
    model, rows = model_config(shape), max(BATCHES)
    engine = CudaEngine(model, None, rows=rows, capacity=capacity, decode=decode, quantize=quantize)
    engine.peek(0)  # all that was launched is done
    say(f"{shape} loaded: {time.perf_counter() - begin:.1f} s")
    return engine


def model_config(shape: str) -> ModelConfig:
    fixed = {"architectures": ["LlamaForCausalLM"], "rope_theta": 5e5, "max_position_embeddings": 1 << 17}
    return ModelConfig.from_json(fixed | SHAPES[shape])


def fill(engine: CudaEngine, rows: Sequence[int], tokens: int) -> None:
    """Have all rows hold the same tokens: computed once, and copied."""
    prompt = np.random.default_rng(0).integers(0, engine.model.vocab, tokens).tolist()
    engine.kv_cache.truncate(rows[0], 0)
    engine.write_prompt(rows[0], prompt)
    engine.prefill(rows[:1])
    engine.sample(rows[:1])
    for row in rows[1:]:
        engine.copy_row(rows[0], row)
    engine.peek(rows[-1])


def decode_seconds(
    engine: CudaEngine, batch: int, context: int, *, steps: int | None = None, draw: bool = False
) -> float:
    """Measure a step that follows another with nobody waiting; with `draw` its tokens are drawn as well."""
    steps = STEPS if steps is None else steps
    rows = engine.kv_cache.acquire(batch)
    fill(engine, rows, context)

    def work() -> None:
        for row in rows:
            engine.kv_cache.truncate(row, context)
        for _ in range(steps):
            if draw:
                engine.sample(rows)
            engine.decode(rows)
        engine.peek(rows[-1])

    work()  # records the graphs
    found = median(work) / steps
    engine.kv_cache.release(rows)
    return found


def draw_seconds(engine: CudaEngine, **how: Any) -> float:
    """Measure how long a token of one row takes to be drawn, one after the other with nobody waiting."""
    rows = engine.kv_cache.acquire(1)
    fill(engine, rows, PROMPT)
    engine.set_sampling(rows[0], **GREEDY | how)

    def work() -> None:
        for _ in range(STEPS):
            engine.sample(rows)
        engine.peek(rows[0])

    work()
    found = median(work) / STEPS
    engine.set_sampling(rows[0], **GREEDY)
    engine.kv_cache.release(rows)
    return found


def median(work: Callable[[], Any]) -> float:
    times: list[float] = []
    while len(times) < ROUNDS and sum(times) < SECONDS:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


# --- the parts ------------------------------------------------------------------------------------------------------


def measure_decode(engine: CudaEngine, shape: str, rates: Rates) -> Iterator[Figure]:
    alone = 0.0
    for batch in BATCHES:
        seconds = decode_seconds(engine, batch, PROMPT)
        path = str(engine.facts()["decode path"]).split()[0]
        yield Figure(shape, f"decode, batch {batch} ({path})", seconds * 1e3)
        if batch == 1:
            alone = seconds
            [row] = engine.kv_cache.acquire(1)
            engine.kv_cache.commit(row, PROMPT + STEPS // 2)
            share = engine.bytes_per_token([row]) / seconds / rates.read
            engine.kv_cache.release([row])
            yield Figure(shape, "share of read bandwidth", share, "%", GOAL_BANDWIDTH.get(shape), True, goal=True)
        else:
            target = BATCH_RATIO.get((shape, batch))
            yield Figure(shape, f"batch {batch} over batch 1", seconds / alone, "x", target)
    for words, how in DRAWN.items():
        yield Figure(shape, f"a token drawn {words}", draw_seconds(engine, **how) * 1e3)


def measure_machine(engine: CudaEngine, shape: str, rates: Rates) -> Iterator[Figure]:
    tokens, first = [], []
    for number, times in enumerate(machine_times(engine, ROUNDS + 1)):
        if number:  # the first records graphs
            first.append(times[1] - times[0])
            tokens.append((times[-1] - times[1]) / (NEW - 1))
    token = statistics.median(tokens)
    queued = decode_seconds(engine, 1, PROMPT, steps=NEW, draw=True)
    plain = engine.environment()["quantize"] is None
    target = (TOKEN_MS if plain else TOKEN_MS_OF_CODES).get(rates.card or "", {}).get(shape)
    yield Figure(shape, "a token, the whole machine", token * 1e3, "ms", target)
    if plain and shape in GOAL_TOKEN_MS:
        yield Figure(shape, "a token, the whole machine", token * 1e3, "ms", GOAL_TOKEN_MS[shape], goal=True)
    yield Figure(shape, "sample and decode, nobody waiting", queued * 1e3)
    yield Figure(shape, "the host's share: Python that a token waits for", (token - queued) * 1e6, "µs")
    yield Figure(shape, "the host's share", (token - queued) / queued, "%", HOST_SHARE.get(shape))
    target = FIRST_TOKEN_MS.get(shape)
    yield Figure(shape, f"first token of {PROMPT} tokens", statistics.median(first) * 1e3, "ms", target)


def machine_times(engine: CudaEngine, rounds: int) -> Iterator[list[float]]:
    """Run the whole machine so often; give when each run began, and when each of its tokens came."""
    generator = generator_of(engine)
    prompt = " ".join(word(int(n)) for n in np.random.default_rng(0).integers(0, engine.model.vocab, PROMPT))
    params = SamplingParams(temperature=0, max_new_tokens=NEW, stop_token_ids=())
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk at hand, not on one that is memory
        for number in range(rounds):
            begin = time.perf_counter()
            run = generator.start(" " + prompt, params, journal=Path(folder, f"{number}.jsonl"))
            times = [time.perf_counter() for _ in generator.pieces(run)]
            assert len(run.context.prompt_ids[0]) == PROMPT
            assert len(times) == NEW
            yield [begin, *times]


class Marked:
    """A graph before and after which the device looks at its clock."""

    def __init__(self, kind: str, graph: Graph, device: Device, marks: list[tuple[str, Moment, Moment]]) -> None:
        self._kind, self._graph, self._device, self._marks = kind, graph, device, marks

    def launch(self) -> None:
        before = self._device.moment()
        self._graph.launch()
        self._marks.append((self._kind, before, self._device.moment()))


def measure_timeline(engine: CudaEngine, shape: str, rates: Rates) -> Iterator[Figure]:
    list(machine_times(engine, 1))  # records graphs
    graphs, marks = engine._graphs._graphs, list[tuple[str, Moment, Moment]]()
    plain = dict(graphs)
    graphs.update({key: Marked(str(key[0]), graph, engine._device, marks) for key, graph in plain.items() if graph})
    try:
        list(machine_times(engine, 1))
    finally:
        graphs.update(plain)
    engine.peek(0)
    rests = sorted(
        start.since(end) / 1e3
        for (earlier, _, end), (kind, start, _) in pairwise(marks)
        if earlier in (PER_OP, PERSISTENT) and kind == "sample"
    )
    yield Figure(shape, "the device rests between two steps, median", statistics.median(rests), "µs", REST_US)
    yield Figure(shape, "the same, of 99 steps in 100", rests[len(rests) * 99 // 100], "µs", REST_US)


def measure_prefill(engine: CudaEngine, shape: str, rates: Rates) -> Iterator[Figure]:
    rows = engine.kv_cache.acquire(1)
    for tokens in (PROMPT, LONG_PROMPT):
        fill(engine, rows, tokens)
        seconds = median(lambda tokens=tokens: fill(engine, rows, tokens))
        yield Figure(shape, f"prefill, {tokens} tokens", seconds * 1e3)
    engine.kv_cache.release(rows)
    if rates.matrix is None:
        say("prefill stands beside no rate of matrix products: torch gave none")
        return
    share = prefill_operations(engine.model, LONG_PROMPT) / seconds / rates.matrix
    yield Figure(
        shape, f"prefill, {LONG_PROMPT} tokens, share of matrix rate", share, "%", PREFILL_SHARE.get(shape), True
    )


def prefill_operations(model: ModelConfig, tokens: int) -> float:
    """Count multiplications and additions: the products of all tokens, the head of one, and causal attention."""
    heads = model.heads * model.head_dim
    layer = model.hidden * (2 * heads + 2 * model.kv_heads * model.head_dim + 3 * model.intermediate)
    attention = 2 * heads * (tokens + 1) / 2  # scores and values, half of each
    return 2 * (model.layers * tokens * (layer + attention) + model.hidden * model.vocab)


def measure_context(engine: CudaEngine, shape: str, rates: Rates) -> Iterator[Figure]:
    for batch in LONG_BATCHES:
        found = [decode_seconds(engine, batch, context) for context in CONTEXTS]
        for context, seconds in zip(CONTEXTS, found, strict=True):
            yield Figure(shape, f"context of {context}, batch {batch}", seconds * 1e3)
        allowed = batch * CONTEXTS[-1] * engine.kv_cache.bytes_per_position / (CACHE_BANDWIDTH * rates.read)
        yield Figure(shape, f"what the context costs, batch {batch}", (found[-1] - found[0]) * 1e3, "ms", allowed * 1e3)


MEASURES: dict[str, Callable[[CudaEngine, str, Rates], Iterator[Figure]]] = {
    "decode": measure_decode, "machine": measure_machine, "timeline": measure_timeline, "prefill": measure_prefill,
    "context": measure_context,
}  # fmt: skip


# --- what stands around it ------------------------------------------------------------------------------------------


def generator_of(engine: CudaEngine) -> Generator:
    """Make a generator with a byte-level tokenizer that has a word for every token of the model."""
    vocab = {"Ġ" + word(number): number for number in range(engine.model.vocab)}
    words = Words(models.BPE(vocab, [], ignore_merges=True))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return Generator(engine, Tokenizer(FastBackend(words)))


def word(number: int) -> str:
    """Write a number in letters."""
    return "".join(chr(ord("a") + number // 26**place % 26) for place in (3, 2, 1, 0))


def read_bandwidth(device: Device, size: int) -> float:
    """Give the bytes per second at which a device that holds no engine reads so many bytes."""
    memory = device.allocate(size + 16)
    defines = Shape(model_config(next(iter(SHAPES))), 1, 8).defines()
    device.build([Module(measuring_source(), defines)], compiling=lambda: None)
    least = math.inf
    for _ in range(5):
        begin = device.moment()
        for _ in range(10):
            device.launch("read_all", (device.processors * 4, 1, 1), 512, memory, size // 16, memory + size)
        end = device.moment()
        Watchdog(device).wait(end, "a benchmark")
        least = min(least, end.since(begin))  # nanoseconds
    return 10 * size / least * 1e9


class Torch:
    """A process that gives torch's figures: it imports while the engine is measured, and measures when asked.

    What it does not give in time is left out, and that is said.
    """

    def __init__(self, shapes: Sequence[str]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("gpu_peers.py")), *shapes]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def matrix_rate(self) -> float | None:
        """Wait for the rate of matrix products, operations per second."""
        return next((value for name, value in self._figures(60) if name == "matrix"), None)

    def peers(self, seconds: float) -> list[tuple[str, float]]:
        """Have the peers measured, and give the seconds a token of each, by name."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            print("go", file=self._process.stdin, flush=True)
        return list(self._figures(seconds))

    def _figures(self, seconds: float) -> Iterator[tuple[str, float]]:
        watch = threading.Timer(seconds, self._process.kill)
        watch.start()
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                try:
                    found = json.loads(line)
                except json.JSONDecodeError:  # a library that talks, or its traceback
                    say(f"torch: {line.rstrip()}")
                    continue
                say(f"torch: {found}")
                if "value" in found:
                    yield found["name"], found["value"]
        finally:
            watch.cancel()
        if self._process.wait():
            say(f"torch: it ended with {self._process.returncode}: it failed, or its {seconds} s were up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
