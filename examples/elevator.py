"""An elevator: calls come as signals while it moves, and nobody waits for ever."""

from dataclasses import dataclass, field

from statemachine import End, Machine, Phase, Run, Signal, Transition, Wait, guard

TOP = 6  # floors are numbered from 0


@dataclass
class Lift:
    floor: int = 0
    direction: int = 1  # or -1
    calls: list[int] = field(default_factory=list)  # floors, first come first


def new_context() -> Lift:
    return Lift(calls=[4])


class Call(Signal[Lift, int]):
    """Somebody pressed a button, in the lift or on a floor."""

    def apply(self, lift: Lift, payload: int) -> None:
        if not 0 <= payload <= TOP:
            raise ValueError(f"floors are numbered from 0 to {TOP}, so there is no floor {payload}")
        if payload not in lift.calls:
            lift.calls.append(payload)


class Move(Phase[Lift, int]):
    """One floor on: further in its direction as long as somebody waits there, and only then back."""

    def run(self, lift: Lift) -> int:
        ahead = any((call - lift.floor) * lift.direction > 0 for call in lift.calls)
        return lift.direction if ahead else -lift.direction

    def apply(self, lift: Lift, outcome: int) -> None:
        lift.direction = outcome
        lift.floor += outcome


class Doors(Phase[Lift, int]):
    """Open and close: whoever called this floor is served."""

    def run(self, lift: Lift) -> int:
        return lift.floor

    def apply(self, lift: Lift, outcome: int) -> None:
        lift.calls = [call for call in lift.calls if call != outcome]


@guard
def called_here(lift: Lift) -> bool:
    return lift.floor in lift.calls


@guard
def called_elsewhere(lift: Lift) -> bool:
    return any(call != lift.floor for call in lift.calls)


idle, choose, move, doors = Wait[Lift, None]("idle"), Phase[Lift, None]("choose"), Move(), Doors()
machine = Machine(
    "elevator",
    start=choose,
    transitions=[
        # Elsewhere first: else somebody who plays with the button of this floor could hold the lift for ever.
        Transition(choose, move, called_elsewhere),
        Transition(choose, doors, called_here & ~called_elsewhere),
        Transition(choose, idle, ~called_here & ~called_elsewhere),
        Transition(move, doors, called_here),
        Transition(move, move, ~called_here),
        Transition(doors, choose),
    ],
    signals=[
        Call("call", to=choose, sources=(idle, choose)),
        *(Call("call", to=phase, sources=(phase,)) for phase in (move, doors)),  # heard, and it goes on as it was
        Signal("switch_off", to=End("off"), sources=(idle,)),
    ],
)


def main() -> None:
    run = Run(machine, Lift())
    run.start()
    print("idle at floor", run.context.floor, "and takes:", *run.possible.signals)
    run.signal("call", 3)
    meanwhile = {2: (5, 0, 2)}  # calls that come when it first passes floor 2
    for step in run:
        if step.phase == "move":
            print("floor", run.context.floor, "| called by", *run.context.calls)
            for floor in meanwhile.pop(run.context.floor, ()):
                run.signal("call", floor)
    print("served in this order:", *(step.outcome for step in run.steps() if step.phase == "doors"))
    run.signal("switch_off")
    print(run.status)


if __name__ == "__main__":
    main()
