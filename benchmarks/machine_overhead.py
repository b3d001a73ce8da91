"""What does the machine itself cost a step: the compiled loop, the transitions library and python-statemachine.

And what does a run at rest, without a journal, cost whoever sends it a signal or answers it?

    python benchmarks/machine_overhead.py

All three run one machine: three phases in a ring, two of them with a guard, as in the decode loop of the generation
machine. Another row is a machine whose phases and guards do a little work, as most do: orders whose payment is tried
again, one after another. python-statemachine has the same import name as Phasewalk's package, so it runs in an
environment of its own that this script makes (needs a package index; skipped with --no-peer).

Everything is measured in many short windows, in turns. The least of them is what it costs; a median far above it says
that the computer was busy. The ring called by hand stands beside: how many times its step something takes depends on
neither the computer nor what else it does.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from statemachine import End, Machine, Phase, Run, Signal, Transition, Wait, guard

REPEATS = 7
WINDOWS = 100
INPUTS = 300  # signals or answers in a window
TOKENS = {"compiled": 700, "transitions": 50, "python-statemachine": 500}
BY_HAND, ORDERS = "by hand, no machine", "compiled, orders with retries"

PEER = """
import json, sys, time
from statemachine import State, StateMachine

class Ring(StateMachine):
    sample, decode, check_stop = State(initial=True), State(), State()
    done = State(final=True)
    advance = (
        sample.to(check_stop, cond="nothing_left") | sample.to(decode, unless="nothing_left")
        | decode.to(check_stop)
        | check_stop.to(done, cond="all_finished") | check_stop.to(sample, unless="all_finished")
    )
    count = 0
    def nothing_left(self): return self.count + 1 >= limit
    def all_finished(self): return self.count >= limit
    def on_exit_check_stop(self): pass
    def before_advance(self, source):
        if source.id == "check_stop": self.count += 1

limit, repeats = int(sys.argv[1]), int(sys.argv[2])
times = []
for _ in range(repeats):
    ring = Ring()
    steps, began = 0, time.perf_counter()
    while not ring.done.is_active:
        ring.send("advance")
        steps += 1
    times.append((time.perf_counter() - began) / steps)
print(json.dumps(times))
"""


@dataclass(slots=True)
class Count:
    limit: int
    count: int = 0


class CheckStop(Phase[Count, int]):
    def run(self, context: Count) -> int:
        return context.count + 1

    def apply(self, context: Count, outcome: int) -> None:
        context.count = outcome


@guard
def nothing_left(context: Count) -> bool:
    return context.count + 1 >= context.limit


@guard
def all_finished(context: Count) -> bool:
    return context.count >= context.limit


sample, decode, check_stop, done = Phase[Count, None]("sample"), Phase[Count, None]("decode"), CheckStop(), End("done")
ring = Machine(
    "ring",
    start=sample,
    transitions=[
        Transition(sample, decode, ~nothing_left),
        Transition(sample, check_stop, nothing_left),
        Transition(decode, check_stop),
        Transition(check_stop, sample, ~all_finished),
        Transition(check_stop, done, all_finished),
    ],
)


@dataclass(slots=True)
class Orders:
    left: int
    amount: int = 0
    tries: int = 0
    paid: bool = False
    parcels: int = 0
    shipped: int = 0


class Place(Phase[Orders, int]):
    def run(self, context: Orders) -> int:
        return 10 + context.left % 7

    def apply(self, context: Orders, outcome: int) -> None:
        context.amount, context.tries, context.paid = outcome, 0, False


class Charge(Phase[Orders, bool]):
    def run(self, context: Orders) -> bool:
        return (context.amount + context.tries) % 3 != 0  # every third gateway is down

    def apply(self, context: Orders, outcome: bool) -> None:
        context.tries += 1
        context.paid = outcome


class Pack(Phase[Orders, int]):
    def run(self, context: Orders) -> int:
        return 1 + context.amount // 15

    def apply(self, context: Orders, outcome: int) -> None:
        context.parcels = outcome


class Ship(Phase[Orders, int]):
    def run(self, context: Orders) -> int:
        return context.shipped + context.parcels

    def apply(self, context: Orders, outcome: int) -> None:
        context.shipped, context.left = outcome, context.left - 1


@guard
def paid(context: Orders) -> bool:
    return context.paid


@guard
def tries_left(context: Orders) -> bool:
    return context.tries < 3


@guard
def all_shipped(context: Orders) -> bool:
    return context.left == 0


place, charge, pack, ship = Place(), Charge(), Pack(), Ship()
orders = Machine(
    "orders",
    start=place,
    transitions=[
        Transition(place, charge),
        Transition(charge, pack, paid),
        Transition(charge, charge, ~paid & tries_left),
        Transition(charge, End("given up"), ~paid & ~tries_left),
        Transition(pack, ship),
        Transition(ship, place, ~all_shipped),
        Transition(ship, done, all_shipped),
    ],
)


@dataclass(frozen=True, slots=True)
class Answer:
    yes: bool
    by: str


class Ask(Wait[Count, Answer]):
    def apply(self, context: Count, outcome: Answer) -> None:
        context.count += 1


class Agree(Wait[Count, bool]):
    def apply(self, context: Count, outcome: bool) -> None:
        context.count += 1


class Told(Signal[Count, Answer]):
    def apply(self, context: Count, payload: Answer) -> None:
        context.count += 1


def desk_of(ask: Wait[Count, Any]) -> Machine[Count]:
    return Machine(
        "desk",
        start=ask,
        transitions=[Transition(ask, ask, ~all_finished), Transition(ask, done, all_finished)],
        signals=[Signal("again", to=ask), Signal("more", to=ask, when=~all_finished), Told("told", to=ask)],
    )


desk, yes_or_no = desk_of(Ask()), desk_of(Agree())
YES = Answer(yes=True, by="me")
SEND: dict[str, tuple[Machine[Count], Callable[[Run[Count]], object]]] = {
    "a signal": (desk, lambda run: run.signal("again")),
    "a signal with a guard": (desk, lambda run: run.signal("more")),
    "a signal with a payload": (desk, lambda run: run.signal("told", YES)),
    "an answer that is a bool": (yes_or_no, lambda run: run.answer(True)),
    "an answer that is a dataclass": (desk, lambda run: run.answer(YES)),
}


def seconds_per_input(name: str) -> float:
    machine, send = SEND[name]
    run = Run(machine, Count(2 * INPUTS))
    run.start()
    send(run)  # what is looked up once is
    began = time.perf_counter()
    for _ in range(INPUTS - 1):
        send(run)
    return (time.perf_counter() - began) / (INPUTS - 1)


def seconds_per_step(interpreter: str) -> float:
    return seconds_of(Run(ring, Count(TOKENS[interpreter]), interpreter=interpreter))


def seconds_of(run: Run[Any]) -> float:
    began = time.perf_counter()
    run.start()
    return (time.perf_counter() - began) / run.step_count


def by_hand() -> float:
    """The same phases called by a plain loop: what is left when there is no machine."""
    context, steps = Count(TOKENS["compiled"]), 0
    began = time.perf_counter()
    while not all_finished.predicate(context):
        sample.run(context)
        if not nothing_left.predicate(context):
            decode.run(context)
            steps += 1
        check_stop.apply(context, check_stop.run(context))
        steps += 2
    return (time.perf_counter() - began) / steps


def peer() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "python-statemachine"], check=True, stderr=subprocess.DEVNULL
        )
        script = Path(folder, "peer.py")
        script.write_text(PEER)
        command = [python, script, str(TOKENS["python-statemachine"]), str(REPEATS)]
        return list(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-peer", action="store_true", help="leave python-statemachine out")
    parser.add_argument("--token-ms", type=float, default=6.0, help="a token's time on the 32M model (cpu_decode.py)")
    arguments = parser.parse_args()
    steps: dict[str, list[float]] = {BY_HAND: [], "compiled": [], ORDERS: [], "transitions": []}
    inputs: dict[str, list[float]] = {name: [] for name in SEND}
    for _ in range(WINDOWS):  # alternating, so that all meet the same weather
        steps[BY_HAND].append(by_hand())
        steps["compiled"].append(seconds_per_step("compiled"))
        steps[ORDERS].append(seconds_of(Run(orders, Orders(left=TOKENS["compiled"]))))
        steps["transitions"].append(seconds_per_step("transitions"))
        for name in SEND:
            inputs[name].append(seconds_per_input(name))
    if not arguments.no_peer:
        steps["python-statemachine"] = peer()
    costs, sent = microseconds(steps), microseconds(inputs)
    share = costs["compiled"]["least"] * 3 / (arguments.token_ms * 1e3)
    if arguments.json:
        print(json.dumps({"us_per_step": costs, "us_per_input": sent, "share_of_token": share}))
        return
    console = Console()
    for title, found in (("a step", costs), ("to a run at rest", sent)):
        table = Table(title, "us each, least", "median", "times a step by hand")
        for name, cost in found.items():
            times = cost["median"] / costs[BY_HAND]["median"]
            table.add_row(name, f"{cost['least']:.2f}", f"{cost['median']:.2f}", f"{times:.1f}")
        console.print(table)
    console.print(f"three compiled steps are {share:.3%} of a token of {arguments.token_ms:g} ms")


def microseconds(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"least": min(values) * 1e6, "median": statistics.median(values) * 1e6}
        for name, values in seconds.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
