"""A machine that waits: an order above a limit is approved by somebody, or refused once its deadline has passed."""

from dataclasses import dataclass, field

from statemachine import End, Machine, Phase, Run, Signal, Status, Transition, Wait, guard

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Answer:
    yes: bool
    by: str = "nobody"


@dataclass
class Order:
    amount: int
    placed: float = 1_000.0  # seconds since the epoch
    asked: int = 0
    answers: list[Answer | None] = field(default_factory=list)


class Price(Phase[Order, int]):
    def run(self, context: Order) -> int:
        return context.asked + 1

    def apply(self, context: Order, outcome: int) -> None:
        context.asked = outcome


class Approve(Wait[Order, Answer | None]):
    """None: ask again."""

    def deadline(self, context: Order) -> float:
        return context.placed + DAY

    def late(self, context: Order) -> Answer:
        return Answer(yes=False)

    def apply(self, context: Order, outcome: Answer | None) -> None:
        context.answers.append(outcome)
        if outcome and outcome.by == "the thief":
            raise PermissionError("the thief approves nothing")


@guard
def answered(context: Order) -> bool:
    return context.answers[-1] is not None


@guard
def approved(context: Order) -> bool:
    return any(answer.yes for answer in context.answers if answer)


price, approve, ship = Price(), Approve(), Phase[Order, None]("ship")
shipped, refused = End[Order]("shipped"), End[Order]("refused", status=Status.CANCELLED)
machine = Machine(
    "approval",
    start=price,
    transitions=[
        Transition(price, approve),
        Transition(approve, price, ~answered),
        Transition(approve, ship, answered & approved),
        Transition(approve, refused, answered & ~approved),
        Transition(ship, shipped),
    ],
    signals=[Signal("withdraw", to=refused, sources=(price, approve))],
)


def waiting(amount: int = 100, **options: object) -> Run[Order]:
    """A run that waits for its first answer."""
    run = Run(machine, Order(amount), **options)  # type: ignore[arg-type]
    assert run.start() is Status.WAITING
    return run
