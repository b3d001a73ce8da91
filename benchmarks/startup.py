"""Measures how long `phasewalk run` takes: whole processes, from the command to the first letter and to the end.

Run `python benchmarks/startup.py`; `--runs 20` for steadier medians.
"""

import argparse
import statistics
import subprocess
import sys
import time

PHASEWALK = [sys.executable, "-c", "from phases.cli import main; main()"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "print()"],
    "import numpy": [sys.executable, "-c", "import numpy; print()"],
    "phasewalk --version": [*PHASEWALK, "--version"],
    "phasewalk --help": [*PHASEWALK, "--help"],
    "phasewalk run": [*PHASEWALK, "run", "What does Prefill do?", "--temperature", "0"],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Give the seconds to the first byte of stdout, and to the end of the process."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
    return first, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="processes of each command (default 7)")
    runs = parser.parse_args().runs
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, command in COMMANDS.items():  # in turns, so that a busy moment meets all of them
            times[name].append(measure(command))
    print(f"medians of {runs} processes, s      first byte     end")
    for name, measured in times.items():
        first, end = (statistics.median(values) for values in zip(*measured[1:], strict=True))  # the first warms files
        print(f"{name:<30}   {first:10.3f} {end:10.3f}")


if __name__ == "__main__":
    main()
