"""What does it cost a run to be driven in company, beside driving itself?

    python benchmarks/ensemble_overhead.py [--runs 1 8 64 256]

The machine is the ring of `machine_overhead.py`: three phases, two of them shared (`run_many`), that do nothing. Turns
are measured one by one, and so are stretches of a run alone. Medians; the least says what it would cost on a computer
that does nothing else.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

from machine_overhead import CheckStop, Count, all_finished, nothing_left
from rich.console import Console
from rich.table import Table

from statemachine import End, Ensemble, Machine, Phase, Run, Transition

TURNS, WARM_UP = 200, 20
STEPS = 3  # of a turn


class Idle(Phase[Count, None]):
    """Does nothing, for many at once."""

    def run_many(self, contexts: Sequence[Count]) -> Sequence[None]:
        return [None] * len(contexts)


sample, decode, check_stop = Idle("sample"), Idle("decode"), CheckStop()
ring = Machine(
    "ring",
    start=sample,
    transitions=[
        Transition(sample, decode, when=~nothing_left),
        Transition(sample, check_stop, when=nothing_left),
        Transition(decode, check_stop),
        Transition(check_stop, sample, when=~all_finished),
        Transition(check_stop, End("done"), when=all_finished),
    ],
)


def in_company(count: int) -> list[float]:
    """Microseconds a run and step, of each turn."""
    ensemble = Ensemble()
    for _ in range(count):
        ensemble.submit(Run(ring, Count(TURNS + WARM_UP)))
    for _ in range(WARM_UP):
        ensemble.turn()
    found = []
    for _ in range(TURNS - 1):
        began = time.perf_counter()
        ensemble.turn()
        found.append((time.perf_counter() - began) / count / STEPS * 1e6)
    ensemble.drive()
    return found


def alone() -> list[float]:
    """Microseconds a step, of runs of as many steps."""
    found = []
    for _ in range(TURNS):
        run = Run(ring, Count(TURNS))
        run.step()
        began = time.perf_counter()
        run.resume()
        found.append((time.perf_counter() - began) / run.step_count * 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 8, 64, 256])
    options = parser.parse_args()
    table = Table("runs", "µs a run and step: median", "least")
    for name, found in [("alone", alone()), *((str(count), in_company(count)) for count in options.runs)]:
        table.add_row(name, f"{statistics.median(found):.2f}", f"{min(found):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
