"""All that needs an NVIDIA GPU, in one go: tests, soak, accuracy, compute-sanitizer and the benchmark; one table.

    python tests/device [--parts tests soak accuracy sanitizer bench] [--quick]

Each part is a process of its own and shows what it does; the table at the end says how each ended and how long it
took. All of them take under eight minutes, with --quick about two.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
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


def jobs(parts: Sequence[str], *, quick: bool) -> list[Job]:
    python, script = sys.executable, [sys.executable, str(HERE / "every_kernel.py")]
    tests = [python, "-m", "pytest", "-q", "-x" if quick else "-ra", "-m", "gpu"]
    steps = ("1000", "250") if quick else ("20000", "1000")
    bench = ["--shapes", "1B", "--parts", "decode", "machine"] if quick else [*SHAPES, "--peer-seconds", "20"]
    every = {
        "tests": [Job("tests", [*tests, "--ignore", ACCURACY, "tests"], 240)],
        "soak": [Job("soak", [python, str(HERE / "soak.py"), "--steps", steps[0], "--large-steps", steps[1]], 180)],
        "accuracy": [Job("accuracy", [*tests, ACCURACY], 120)],
        "sanitizer": [
            Job(tool, [*SANITIZER, "--tool", tool, *script, *options], 120, needs=SANITIZER[0])
            for tool, options in TOOLS.items()
            if tool == "memcheck" or not quick
        ],
        "bench": [Job("bench", [python, "benchmarks/gpu_decode.py", *bench], 240)],
    }
    return [job for part in parts for job in every[part]]


def run(job: Job) -> Outcome:
    print(f"\n== {job.name}", flush=True)
    if job.needs and shutil.which(job.needs) is None:
        print(f"{job.needs} is not installed", flush=True)
        return Outcome(job.name, 0.0, None, f"{job.needs} is not installed")
    begin, last = time.perf_counter(), ""
    with subprocess.Popen(
        ["timeout", str(job.seconds), *job.command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
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
    outcomes = [run(job) for job in jobs(options.parts, quick=options.quick)]
    table = Table("part", "seconds", "", "last word")
    words = {True: "[green]passed", False: "[red]FAILED", None: "[yellow]skipped"}
    for outcome in outcomes:
        table.add_row(outcome.name, f"{outcome.seconds:.0f}", words[outcome.passed], outcome.last_line[:100])
    table.add_row("all", f"{sum(outcome.seconds for outcome in outcomes):.0f}", "", "")
    print()
    Console(width=150).print(table)
    sys.exit(1 if any(outcome.passed is False for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
