"""All that needs an NVIDIA GPU, in one go: tests, soak, accuracy, compute-sanitizer and the benchmark; one table.

    python tests/device [--parts tests soak accuracy sanitizer bench] [--quick]

Each part is processes of its own, which show what they do; all but the benchmark run side by side, as they measure
nothing. The table at the end says how each ended and how long it took. All of them take under eight minutes, with
--quick about two.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gpu import unavailable_engines

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ACCURACY = "tests/gpu/cuda/test_accuracy.py"
SANITIZER = ("compute-sanitizer", "--report-api-errors", "no", "--error-exitcode", "1")  # cuda.core probes the driver
TOOLS = {"memcheck": (), "racecheck": ("--older",), "initcheck": ()}  # how every_kernel.py is called
SHAPES = ("--shapes", "100M", "1B", "8B")
PARTS = ("tests", "soak", "accuracy", "sanitizer", "bench")


@dataclass(slots=True)
class Job:
    """A process of a part."""

    name: str
    command: Sequence[str]
    seconds: int  # it has
    needs: str | None = None  # a program


@dataclass(slots=True)
class Outcome:
    """How a job ended."""

    name: str
    seconds: float
    passed: bool | None  # None: it did not run
    last_line: str


def checks(parts: Sequence[str], *, quick: bool) -> list[Job]:
    """Give what runs side by side."""
    python, script = sys.executable, [sys.executable, str(HERE / "every_kernel.py")]
    tests = [python, "-m", "pytest", "-q", "-x" if quick else "-ra", "-m", "gpu", "--dist", "load"]
    steps = ("1000", "250") if quick else ("20000", "1000")
    every = {
        "tests": [Job("tests", [*tests, "--maxprocesses", "12", "--ignore", ACCURACY, "tests"], 360)],
        "soak": [
            Job(
                f"soak, {path}",
                [python, str(HERE / "soak.py"), "--decode", path, "--steps", steps[0], "--large-steps", steps[1]],
                400,
            )
            for path in ("per-op", "persistent")
        ],
        "accuracy": [Job("accuracy", [*tests, "--maxprocesses", "2", ACCURACY], 360)],
        "sanitizer": [
            Job(tool, [*SANITIZER, "--tool", tool, *script, *options], 360, needs=SANITIZER[0])
            for tool, options in TOOLS.items()
            if tool == "memcheck" or not quick
        ],
    }
    return [job for part, jobs in every.items() if part in parts for job in jobs]


def bench(*, quick: bool) -> Job:
    short, long = ["--shapes", "1B", "--parts", "decode", "machine"], [*SHAPES, "--peer-seconds", "15"]
    return Job("bench", [sys.executable, "benchmarks/gpu_decode.py", *(short if quick else long)], 240)


def run(job: Job) -> Outcome:
    if job.needs and shutil.which(job.needs) is None:
        print(f"{job.name}: {job.needs} is not installed", flush=True)
        return Outcome(job.name, 0.0, None, f"{job.needs} is not installed")
    begin, last = time.perf_counter(), ""
    with subprocess.Popen(
        ["timeout", str(job.seconds), *job.command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{job.name}: {line}", end="", flush=True)
            last = line.strip() or last
    if process.returncode == 124:
        last = f"took longer than {job.seconds} s; last: {last}"
    return Outcome(job.name, time.perf_counter() - begin, process.returncode == 0, last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    options = parser.parse_args()
    if (missing := unavailable_engines().get("cuda")) is not None:
        sys.exit(f"there is nothing to run on: {missing}")
    begin = time.perf_counter()
    side_by_side = checks(options.parts, quick=options.quick)
    with ThreadPoolExecutor(len(side_by_side) or 1) as pool:
        outcomes = list(pool.map(run, side_by_side))
    if "bench" in options.parts:
        outcomes.append(run(bench(quick=options.quick)))
    table = Table("part", "seconds", "", "last word")
    words = {True: "[green]passed", False: "[red]FAILED", None: "[yellow]skipped"}
    for outcome in outcomes:
        table.add_row(outcome.name, f"{outcome.seconds:.0f}", words[outcome.passed], outcome.last_line[:100])
    table.add_row("all", f"{time.perf_counter() - begin:.0f}", "", "")
    print()
    Console(width=150).print(table)
    sys.exit(1 if any(outcome.passed is False for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
