"""Answers: what a run waits for at a `Wait`, and how it is given."""

from typing import Any, TypeVar

from statemachine.definition.phase import Status, Wait
from statemachine.execution import host_state
from statemachine.execution.lifecycle import Lifecycle
from statemachine.execution.steps import Steps
from statemachine.execution.timeline import Step

Context = TypeVar("Context")


class Answers(Steps[Context]):
    """The moves of a run that waits."""

    @property
    def deadline(self) -> float | None:
        """When to call `time_out`, in seconds since the epoch; None: never, or the run does not wait."""
        phase = self.phase
        return phase.deadline(self.context) if self.status is Status.WAITING and isinstance(phase, Wait) else None

    @property
    def waits_for_signals(self) -> bool:
        """Whether it rests at a `Wait` that no transition leaves, and that takes no answer."""
        return isinstance(self.phase, Wait) and not self._program.rows[self._cursor.index].arcs

    def answer(self, outcome: Any) -> Step:
        """Give a waiting run the outcome of its phase: it is entered and recorded, and the run rests at the next phase.

        Parameters
        ----------
        outcome
            Of the type that the phase declares, or the plain JSON values that a record would hold of it.

        Raises
        ------
        OutcomeError
            When it is not of that type, or JSON cannot hold it; the run still waits, as it does whatever is raised.
        IllegalMove
            When the run does not wait, or waits for signals alone.
        """
        return self._move("answer", (Status.WAITING,), self._answer, outcome)

    def time_out(self) -> Step:
        """Answer for a deadline that has passed, as the phase says (`Wait.late`); the clock is the caller's."""

        def late() -> Step:
            self._check_answerable()
            assert isinstance(self.phase, Wait)  # for it waits
            return self._answer(self.phase.late(self.context))

        return self._move("time out", (Status.WAITING,), late)

    def _answer(self, outcome: Any) -> Step:
        program, index = self._program, self._cursor.index
        if not program.rows[index].arcs:
            self._check_answerable()
        answer = Lifecycle.typed(outcome, program.phases[index])
        try:
            if self.timeline.rewound is not None:  # only for one that can be entered is what lies ahead forgotten
                scratch = host_state.scratch(self.context, host_state.save(self.context))
                self._program.step(self._cursor.index, scratch, answer)
                self._begin(on=True)
            self._torn = True
            self._enter(answer, 0)
        except Exception as error:
            error.add_note(f"{self.phase.name!r} could not enter this answer, and run {self.id} still waits for one")
            self._mend()
            raise
        self._look_up()
        self._torn = False
        self._rest()
        return self.timeline.last()
