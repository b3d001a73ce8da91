"""A saga: a flight, a hotel and a car are all booked, or else what was booked is undone again, in reverse."""

from dataclasses import dataclass, field

from statemachine import End, Machine, Phase, Raised, Run, Status, Transition, Wait, guard

PRICES = {"flight": 420, "hotel": 310, "car": 90}  # euros


class SoldOut(Exception):
    pass


class ShortOfMoney(Exception):
    pass


class NoAnswer(Exception):
    """Nobody knows whether the provider did what it was asked to."""


@dataclass
class Trip:
    money: int = 1_000  # euros
    sold_out: str = ""  # what of it, if anything
    silent: int = 0  # how often a provider does not answer before it undoes something
    booked: dict[str, int] = field(default_factory=dict)  # what may be booked, in order, and what was paid for it
    tries: int = 0  # to undo what was booked last


def new_context() -> Trip:
    return Trip(sold_out="car", silent=2)


class Book(Phase[Trip, int]):
    def run(self, trip: Trip) -> int:
        if self.name == trip.sold_out:
            raise SoldOut(self.name)
        return PRICES[self.name]  # here the provider is called, under a key of this trip: asked twice, it books once

    def apply(self, trip: Trip, outcome: int) -> None:
        trip.booked[self.name] = outcome
        trip.money -= outcome

    def apply_error(self, trip: Trip, raised: Raised) -> None:
        if raised.way == "NoAnswer":
            trip.booked[self.name] = 0


def paid_last(trip: Trip) -> int:
    return [*trip.booked.values()][-1]


def enter_refund(trip: Trip, euros: int) -> None:
    trip.booked.popitem()
    trip.money += euros
    trip.tries = 0


class Undo(Phase[Trip, int]):
    """Undoes what was booked last; the provider gives back what was paid, nothing if it was not booked after all."""

    def run(self, trip: Trip) -> int:
        if trip.tries < trip.silent:
            raise NoAnswer(f"{[*trip.booked][-1]}, try {trip.tries + 1}")
        return paid_last(trip)

    def apply(self, trip: Trip, outcome: int) -> None:
        enter_refund(trip, outcome)

    def apply_error(self, trip: Trip, raised: Raised) -> None:
        trip.tries += 1


class ByHand(Wait[Trip, int]):
    """A person calls the provider, and says how much came back."""

    def apply(self, trip: Trip, outcome: int) -> None:
        if outcome != paid_last(trip):  # refused, and the run waits on
            raise ShortOfMoney(f"{paid_last(trip)} euros were paid, {outcome} came back: call again")
        enter_refund(trip, outcome)


@guard
def more_to_undo(trip: Trip) -> bool:
    return bool(trip.booked)


@guard
def tries_left(trip: Trip) -> bool:
    return trip.tries < 3


flight, hotel, car = Book("flight"), Book("hotel"), Book("car")
undo, by_hand = Undo(), ByHand()
booked, undone = End("booked"), End("undone", status=Status.CANCELLED)
machine = Machine(
    "saga",
    start=flight,
    transitions=[
        Transition(flight, hotel),
        Transition(hotel, car),
        Transition(car, booked),
        Transition(flight, undone, raises=SoldOut),
        Transition(flight, undo, raises=NoAnswer),  # it may be booked all the same
        Transition(hotel, undo, raises=(SoldOut, NoAnswer)),
        Transition(car, undo, raises=(SoldOut, NoAnswer)),
        Transition(undo, undo, more_to_undo),
        Transition(undo, undone, ~more_to_undo),
        Transition(undo, undo, tries_left, raises=NoAnswer),
        Transition(undo, by_hand, ~tries_left, raises=NoAnswer),
        Transition(by_hand, undo, more_to_undo),
        Transition(by_hand, undone, ~more_to_undo),
    ],
)


def main() -> None:
    for trip in (Trip(), Trip(sold_out="car", silent=2), Trip(sold_out="hotel", silent=9)):
        run = Run(machine, trip)
        if run.start() is Status.WAITING:
            run.answer(420)
        print(*(f"{step.phase}{' (failed)' if step.raised else ''}" for step in run.steps()), "->", run.phase.name)
        print("   ", trip.money, "euros left, booked:", ", ".join(trip.booked) or "nothing")


if __name__ == "__main__":
    main()
