"""What recording costs a step: the compiled loop without and with a journal on disk, in turns.

python benchmarks/journal_overhead.py
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from machine_overhead import REPEATS, Count, ring
from rich.console import Console
from rich.table import Table

from statemachine import JournalWriter, Run

TOKENS = 100_000


def seconds_per_step(folder: Path | None) -> tuple[float, float]:
    """Seconds and, where it is recorded, bytes a step."""
    path = folder / "run.jsonl" if folder else None
    run = Run(ring, Count(TOKENS), journal=JournalWriter(path) if path else None)
    began = time.perf_counter()
    run.start()
    seconds = (time.perf_counter() - began) / run.step_count
    if path is None:
        return seconds, 0.0
    size = path.stat().st_size / run.step_count
    path.unlink()
    return seconds, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    without: list[float] = []
    recorded: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk at hand, not on one that is memory
        for _ in range(REPEATS):
            without.append(seconds_per_step(None)[0])
            seconds, size = seconds_per_step(Path(folder))
            recorded.append(seconds)
    plain, full = statistics.median(without) * 1e6, statistics.median(recorded) * 1e6
    if arguments.json:
        print(json.dumps({"without": plain, "recorded": full, "journal_us": full - plain, "bytes_per_step": size}))
        return
    table = Table("run", "us per step (median)", "bytes per step")
    table.add_row("without a journal", f"{plain:.2f}", "")
    table.add_row("with a journal on disk", f"{full:.2f}", f"{size:.0f}")
    table.add_row("the journal alone", f"{full - plain:.2f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
