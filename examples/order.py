"""An order: paid with retries, packed, shipped, cancelled unless it is too late; killed on the way, and recovered."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from statemachine import End, JournalWriter, Machine, Phase, Raised, Run, Signal, Status, Transition, guard, recover


class GatewayDown(Exception):
    """No answer from the bank: nobody knows whether it took the money."""


@dataclass
class Order:
    amount: int = 30  # euros
    outage: int = 2  # attempts that find the gateway down
    patience: float = 0.01  # seconds before the second attempt, twice as many before the third
    bank: str = os.devnull  # the file that stands for the bank; without one nothing is kept
    attempts: int = 0


def entries(order: Order) -> list[str]:
    """What the bank knows of this order."""
    return Path(order.bank).read_text().splitlines()


def enter(order: Order, entry: str) -> None:
    """Tell the bank. What it knows already changes nothing: so a phase that runs twice charges once."""
    if entry not in entries(order):
        with open(order.bank, "a") as bank:
            bank.write(f"{entry}\n")


def new_context() -> Order:
    return Order()


class Charge(Phase[Order, str]):
    def run(self, order: Order) -> str:
        if order.attempts < order.outage:
            raise GatewayDown(f"no answer to attempt {order.attempts + 1}")
        enter(order, f"charged {order.amount}")
        return f"receipt of attempt {order.attempts + 1}"

    def apply(self, order: Order, outcome: str) -> None:
        order.attempts += 1

    def apply_error(self, order: Order, raised: Raised) -> None:
        order.attempts += 1


class BackOff(Phase[Order, None]):
    def run(self, order: Order) -> None:
        time.sleep(order.patience * 2 ** (order.attempts - 1))


class Refund(Phase[Order, None]):
    def run(self, order: Order) -> None:
        if entries(order):
            enter(order, f"refunded {order.amount}")


@guard
def tries_left(order: Order) -> bool:
    return order.attempts < 3


charge, back_off, refund = Charge(), BackOff(), Refund()
pack, ship = Phase[Order, None]("pack"), Phase[Order, None]("ship")  # a real shop overrides run()
machine = Machine(
    "order",
    start=charge,
    transitions=[
        Transition(charge, pack),
        Transition(charge, back_off, tries_left, raises=GatewayDown),
        Transition(charge, refund, ~tries_left, raises=GatewayDown),
        Transition(back_off, charge),
        Transition(pack, ship),
        Transition(ship, End("shipped")),
        Transition(refund, End("cancelled", status=Status.CANCELLED)),
    ],
    # By way of the refund even before the receipt: who was killed may have paid, and could not say so.
    signals=[Signal("cancel", to=refund, sources=(charge, back_off, pack))],
)


def begin_or_go_on(folder: Path) -> Run[Order]:
    """Every step is on disk before the next phase runs, and no finished phase runs again."""
    journal, bank = folder / "order.jsonl", folder / "bank.txt"
    bank.touch()
    if not journal.exists():
        return Run(machine, Order(bank=str(bank)), journal=JournalWriter(journal, every="step"))
    run = Run(machine, Order(bank=str(bank)))
    if divergence := recover(journal, run, every="step"):
        raise SystemExit(divergence.report())
    return run


def die_at_the_worst_moment(folder: Path) -> None:
    """The bank has the money, and no record says so yet."""
    Charge.apply = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    begin_or_go_on(folder).start()


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="order-"))
    killed = subprocess.run([sys.executable, __file__, folder], check=False)
    run = begin_or_go_on(folder)
    print("killed:", killed.returncode, "| the bank says:", *entries(run.context))
    print("recovered:", ", ".join(f"{step.phase} failed" if step.raised else step.phase for step in run.steps()))
    run.until(ship)
    run.signal("cancel", wait=True)  # one that cannot be taken here; without wait=True an IllegalMove says so
    print(run.resume(), "| the bank says:", *entries(run.context))
    print(*(f"{event.name} was {event.kind}: {event.reason}" for event in run.events))


if __name__ == "__main__":
    die_at_the_worst_moment(Path(sys.argv[1])) if sys.argv[1:] else main()
