"""Decode speed of the engines of the CPU beside Hugging Face generate and llama.cpp, 1, 8 and 32 rows, in one table.

    python benchmarks/cpu_decode.py [--threads N] [--repeats N] [--shapes NAME ...] [--only [NAME ...]]
                                    [--llama-python PYTHON]

All run the same random weights, greedily, in turns: in each round the read bandwidth is measured, of one thread and of
`--threads`, then each contender decodes one row, then each decodes 8, then 32, so that all see the same machine.
Figures are medians over the rounds. `numpy, 1 thread` is the default of that engine, all others have `--threads`; of
generate with one thread and with those, the faster is shown. `x 1 row` is how many times the tokens of one row come of
the batch, of the NumPy engine those of the way to decode in which one row is fastest. `share` is that of the bandwidth
of as many threads. Tokens are compared with those of `numpy` in float32; of fewer bits they are others, as they must be
on random weights.

llama.cpp takes part if `--llama-python` names an interpreter that has it: `llama_cpp_decode.py` tells how to make one.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Random weights give no sensible text, and transformers need not say so.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import gpu

PROMPT_TOKENS, CAPACITY, BATCHES = 16, 512, (1, 8, 32)
TARGETS = {"onnx float32": 1.1, "onnx int8": 2.2, "onnx int4": 2.8}  # times the NumPy engine with as many threads
BATCH_TARGETS = {("numpy, together", 8): 2.5, ("numpy, together", 32): 5.0}  # times one row, see above
LLAMA_CPP = Path(__file__).with_name("llama_cpp_decode.py")
OTHERS = ("onnx", "llama.cpp")  # who may be left out; NumPy and generate always take part
LLAMA_KINDS = ("F32", "Q8_0", "Q4_0")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama shape to measure."""

    config: dict[str, int]
    steps: int  # of a turn


SHAPES = {
    "32M": Shape(
        config={
            "num_hidden_layers": 8,
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
            "vocab_size": 8192,
        },
        steps=96,
    ),
    "160M": Shape(
        config={
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": 32000,
        },
        steps=40,
    ),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contender did in one turn."""

    tokens: list[int]  # of the first row, the one that prefill gave first
    seconds: float  # of the decode steps
    read: float  # bytes of a step


Decode = Callable[[Sequence[Sequence[int]], int], Turn]
"""Decodes so many tokens of each of these prompts, all rows together."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who takes part, and with how many threads."""

    decode: Decode
    threads: int


Turns = dict[tuple[str, int], list[Turn]]  # by contender and batch
Bandwidths = dict[int, list[float]]  # by threads, bytes/s of each round


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one contender on one shape, at one batch."""

    shape: str
    contender: str
    batch: int
    tokens_per_s: float | None  # of all rows; None: it could not take part
    times_numpy: float | None
    target: float | None
    times_one_row: float | None
    batch_target: float | None
    read: float | None  # bytes/s
    share: float | None  # of the bandwidth that was measured in the same round
    same_tokens: bool | None
    lacking: str = ""


def phasewalk(engine: gpu.Engine) -> Decode:
    def decode(prompts: Sequence[Sequence[int]], count: int) -> Turn:
        rows = engine.kv_cache.acquire(len(prompts))
        for row, prompt in zip(rows, prompts, strict=True):
            engine.write_prompt(row, prompt)
        engine.prefill(rows)
        engine.sample(rows)
        tokens, read = [engine.sampled(rows)[0]], 0
        began = time.perf_counter()
        for _ in range(count):
            engine.decode(rows)
            engine.sample(rows)
            tokens.append(engine.sampled(rows)[0])
            read += engine.bytes_per_token(rows)
        seconds = time.perf_counter() - began
        engine.kv_cache.release(rows)
        return Turn(tokens, seconds, read / count)

    return decode


class _Clock:
    """A streamer that notes when each token came, so that generate's prefill is not counted as decode."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generate(model: Any, threads: int) -> Decode:
    weights = sum(parameter.nbytes for name, parameter in model.named_parameters() if "embed_tokens" not in name)

    def decode(prompts: Sequence[Sequence[int]], count: int) -> Turn:
        torch.set_num_threads(threads)
        ids, clock = torch.tensor(prompts), _Clock()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count + 1, min_new_tokens=count + 1,
                do_sample=False, streamer=clock,
            )  # fmt: skip
        # The first entry is the prompt, the second the token that prefill gave.
        return Turn(out[0, ids.shape[1] :].tolist(), clock.times[-1] - clock.times[1], weights)

    return decode


class LlamaCpp:
    """llama.cpp in a process of its own, which waits between its turns."""

    def __init__(self, python: str, checkpoint: Path, kind: str, threads: int) -> None:
        target = checkpoint / f"{kind}.gguf"
        command = [python, str(LLAMA_CPP), str(checkpoint), str(target), kind, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def __call__(self, prompts: Sequence[Sequence[int]], count: int) -> Turn:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "count": count}) + "\n")
        self._process.stdin.flush()
        return Turn(**self._answer())

    def close(self) -> None:
        with self._process:  # it ends with its input
            pass

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            sys.exit(f"llama.cpp failed: see above; {LLAMA_CPP} tells how it is made")
        return json.loads(line)


def measure(
    name: str, *, threads: int, repeats: int, steps: int | None, only: Sequence[str], llama: str | None
) -> tuple[list[Result], str]:
    """Let all contenders run in turns on one checkpoint of this shape; also gives what llama.cpp says of itself."""
    shape = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(**shape.config, max_position_embeddings=2048, eos_token_id=None, pad_token_id=0)
    model = LlamaForCausalLM(config).eval()
    prompts = np.random.default_rng(0).integers(0, shape.config["vocab_size"], (max(BATCHES), PROMPT_TOKENS)).tolist()
    count, system = steps or shape.steps, "no llama.cpp"
    contenders: dict[str, Contender] = {}
    lacking: dict[str, str] = {}
    with ExitStack() as open_until_the_end:
        folder = Path(open_until_the_end.enter_context(tempfile.TemporaryDirectory()))
        model.save_pretrained(folder)

        def load(engine: str, threads: int, **options: Any) -> Contender:
            loaded = gpu.load_engine(
                folder, engine, max_batch=max(BATCHES), capacity=CAPACITY, threads=threads, **options
            )
            return Contender(phasewalk(open_until_the_end.enter_context(loaded)), threads)

        if threads > 1:
            contenders["numpy, 1 thread"] = load("numpy", 1)
        contenders["numpy"] = load("numpy", threads)
        contenders["numpy, together"] = load("numpy", threads, decode="together")
        for kind in ("float32", "int8", "int4") if "onnx" in only else ():
            if "onnx" in gpu.engines():
                quantize = None if kind == "float32" else kind
                contenders[f"onnx {kind}"] = load("onnx", threads, quantize=quantize, export=exported(folder, quantize))
            else:
                lacking[f"onnx {kind}"] = gpu.unavailable_engines()["onnx"]
        for some in sorted({1, threads}):
            contenders[f"HF generate, {some} thread{'s' * (some > 1)}"] = Contender(generate(model, some), some)
        for kind in LLAMA_KINDS if "llama.cpp" in only else ():
            if llama is None:
                lacking[f"llama.cpp {kind}"] = f"no --llama-python was named; {LLAMA_CPP.name} tells how to make one"
                continue
            started = LlamaCpp(llama, folder, kind, threads)
            open_until_the_end.callback(started.close)
            contenders[f"llama.cpp {kind}"] = Contender(started, threads)
            system = f"llama-cpp-python {started.about['version']} ({_features(started.about['system'])})"
        found, bandwidths = in_turns(contenders, prompts, count, repeats=repeats)
    measured = results(name, contenders, found, bandwidths, count)
    return [*measured, *missing(name, lacking)], f"{_read(bandwidths, threads)}; {system}"


def exported(folder: Path, quantize: str | None) -> Path:
    """Make an export that is gone with the checkpoint, not one in the user's cache."""
    from gpu.onnx.export import export

    model, target = gpu.ModelConfig.from_folder(folder), folder / (quantize or "float32")
    export(gpu.Checkpoint.open(folder, model), model, target, quantize=quantize)
    return target


def in_turns(
    contenders: dict[str, Contender], prompts: list[list[int]], count: int, *, repeats: int
) -> tuple[Turns, Bandwidths]:
    """Give the turns of each contender at each batch, and the bandwidth of each round; a first round only warms up."""
    found: Turns = {}
    bandwidths: Bandwidths = {contender.threads: [] for contender in contenders.values()}
    for number in range(repeats + 1):
        print(f"round {number} of {repeats}", file=sys.stderr, flush=True)
        for threads, measured in bandwidths.items():
            if number:
                measured.append(gpu.measure_read_bandwidth(threads))
        for batch in BATCHES:
            for name, contender in contenders.items():
                turn = contender.decode(prompts[:batch], count if number else 2)
                time.sleep(0.1)  # threads that wait for more work by spinning give up
                if number:
                    found.setdefault((name, batch), []).append(turn)
    return found, bandwidths


def results(
    shape: str, contenders: dict[str, Contender], found: Turns, bandwidths: Bandwidths, count: int
) -> list[Result]:
    """Give the medians; of generate with one thread and with all, only the better."""
    median = statistics.median
    rates = {key: median(key[1] * count / turn.seconds for turn in turns) for key, turns in found.items()}
    one_row = {name: rate for (name, batch), rate in rates.items() if batch == 1}
    fastest = max(rate for name, rate in one_row.items() if name.startswith("numpy"))
    made = []
    for (name, batch), turns in found.items():
        others = [rate for (other, size), rate in rates.items() if other.startswith("HF") and size == batch]
        if name.startswith("HF") and rates[name, batch] < max(others):
            continue
        exact = not name.startswith(("onnx int", "llama.cpp Q"))
        possible = bandwidths[contenders[name].threads]
        reads = [turn.read * count / turn.seconds for turn in turns]
        made.append(
            Result(
                shape=shape,
                contender=name,
                batch=batch,
                tokens_per_s=rates[name, batch],
                times_numpy=rates[name, batch] / rates["numpy", batch],
                target=TARGETS.get(name),
                times_one_row=rates[name, batch] / (fastest if name.startswith("numpy") else one_row[name]),
                batch_target=BATCH_TARGETS.get((name, batch)),
                read=median(reads),
                # Round by round, since the bandwidth of a shared machine changes from one second to the next.
                share=median(read / bandwidth for read, bandwidth in zip(reads, possible, strict=True)),
                same_tokens=turns[0].tokens == found["numpy", batch][0].tokens if exact else None,
            )
        )
    return sorted(made, key=lambda result: result.batch)


def missing(shape: str, lacking: dict[str, str]) -> list[Result]:
    return [
        Result(shape, name, batch, None, None, TARGETS.get(name), None, None, None, None, None, reason)
        for batch in BATCHES
        for name, reason in lacking.items()
    ]


def table(shape: str, found: Sequence[Result]) -> Table:
    made = Table(title=f"Decode, {shape} Llama, {PROMPT_TOKENS} tokens of prompt, random weights")
    for column in (
        "rows",
        "contender",
        "tokens/s",
        "x numpy",
        "target",
        "x 1 row",
        "target",
        "reads",
        "share",
        "tokens",
    ):
        made.add_column(column, justify="left" if column in ("contender", "tokens") else "right", no_wrap=True)
    for batch in BATCHES:
        for result in (result for result in found if result.batch == batch):
            target = f"{result.target}x" if result.target else ""
            if result.tokens_per_s is None or result.read is None:
                made.add_row(str(batch), result.contender, "--", "", target, "", "", "", "", "", style="dim")
                continue
            same = {None: "", True: "same", False: "DIFFER"}[result.same_tokens]
            made.add_row(
                str(batch), result.contender, f"{result.tokens_per_s:.1f}", f"{result.times_numpy:.2f}x", target,
                f"{result.times_one_row:.2f}x", f"{result.batch_target}x" if result.batch_target else "",
                f"{result.read / 1e9:.1f} GB/s", f"{result.share:.0%}", same,
            )  # fmt: skip
        made.add_section()
    return made


def _read(bandwidths: Bandwidths, threads: int) -> str:
    rates = {number: f"{statistics.median(bandwidths[number]) / 1e9:.1f} GB/s" for number in (1, threads)}
    return ", ".join(f"{number} thread{'s read' if number > 1 else ' reads'} {rate}" for number, rate in rates.items())


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _features(system: str) -> str:
    """The instructions that a build of llama.cpp uses, of what it says of itself."""
    words = [part.split("=")[0].split(":")[-1].strip() for part in system.split("|") if part.strip().endswith("= 1")]
    return " ".join(words) or "no special instructions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each contender (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are taken over them (default 7)")
    parser.add_argument("--steps", type=int, help="decode steps of a turn (default: 96 of 32M, 40 of 160M)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--only", nargs="*", choices=OTHERS, default=OTHERS, help="beside NumPy and generate (default: all)"
    )
    parser.add_argument("--llama-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python and gguf")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    all_found: list[Result] = []
    for shape in options.shapes:
        found, about = measure(
            shape, threads=options.threads, repeats=options.repeats, steps=options.steps, only=options.only,
            llama=options.llama_python,
        )  # fmt: skip
        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        console.print(table(shape, found))
        console.print(
            f"{processor()}, {os.cpu_count()} cores; medians of {options.repeats} rounds; {about}; NumPy "
            f"{np.__version__}, torch {torch.__version__}"
        )
        for reason in dict.fromkeys(result.lacking for result in found if result.lacking):
            names = dict.fromkeys(result.contender for result in found if result.lacking == reason)
            console.print(f"not measured: {', '.join(names)}: {reason}")
        all_found += found
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in all_found], indent=2) + "\n")


if __name__ == "__main__":
    main()
