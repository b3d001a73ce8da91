"""The table as a frozen `transitions.Machine`: the authority that everything else is read from."""

from collections.abc import Sequence
from typing import Any

import transitions

from statemachine.definition.guard import Guard
from statemachine.definition.phase import Phase
from statemachine.definition.table import ADVANCE, RAISED, Signal, Transition, name_of


class LibraryTransition(transitions.Transition):
    """A transition of the library that remembers its number in the table, its guard and what it is for."""

    def __init__(
        self, *args: Any, number: int = -1, guard: Guard[Any] | None = None, kind: type[Exception] | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.number = number
        self.guard = guard
        self.kind = kind  # of exceptions; None: it is for an outcome


class LibraryMachine(transitions.Machine):
    """A `transitions.Machine` without models or implicit transitions that refuses changes once built.

    Trigger it on any object with an attribute `state`, handing over the context:
    `machine.events["advance"].trigger(cursor, context)`.
    """

    transition_cls = LibraryTransition
    _frozen = False

    def __init__(
        self, name: str, phases: Sequence[Phase[Any, Any]], start: Phase[Any, Any],
        table: Sequence[Transition[Any]], signals: Sequence[Signal[Any, Any]],
    ) -> None:  # fmt: skip
        super().__init__(model=None, states=list(phases), initial=start, auto_transitions=False, name=name)
        for number, transition in enumerate(table):
            for kind in transition.classes or (None,):
                self.add_transition(
                    f"{RAISED}{kind.__name__}" if kind else ADVANCE,
                    name_of(transition.source), name_of(transition.target),
                    conditions=None if transition.when is None else [transition.when],
                    number=number, guard=transition.when, kind=kind,
                )  # fmt: skip
        for number, signal in enumerate(signals):
            sources = [name_of(source) for source in signal.sources] or [p.name for p in phases if not p.final]
            self.add_transition(
                signal.name, sources, name_of(signal.to),
                conditions=None if signal.when is None else [signal.when], number=number, guard=signal.when,
            )  # fmt: skip
        self._frozen = True

    def add_states(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_change()
        super().add_states(*args, **kwargs)

    def add_transition(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_change()
        super().add_transition(*args, **kwargs)

    def remove_transition(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_change()
        super().remove_transition(*args, **kwargs)

    def _refuse_change(self) -> None:
        if self._frozen:
            raise TypeError(f"machine {self.name!r} is frozen: build another from a changed table, or use insert()")
