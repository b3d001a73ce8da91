"""Places to stop at, and whether the step just taken led to one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from phases.debugger.conditions import Condition, Vocabulary
from phases.debugger.errors import DebuggerError
from phases.debugger.guards import words_of
from statemachine import Machine, Run
from statemachine.definition.variable import in_words

Judge = Callable[[Condition], bool]  # whether a condition holds where a run rests


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A place to stop at: before a phase, after a guard held, or once a condition holds."""

    number: int
    kind: Literal["phase", "guard", "if"]
    target: str  # the phase, what a guard or choice comes to in words, or the condition as it was written
    condition: Condition | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"

    def hit(self, run: Run[Any], holds: Judge) -> bool:
        """Whether the step just taken led to it."""
        if self.kind == "phase":
            return run.phase.name == self.target
        if self.kind == "guard":
            last = next(run.steps(run.step_count - 1))
            return self.target in [in_words({name: value}) for name, value in last.guards.items()]
        assert self.condition is not None
        return holds(self.condition)


class Breakpoints:
    """The breakpoints that are set, in the order in which they were."""

    def __init__(self) -> None:
        self._set: list[Breakpoint] = []
        self._made = 0

    def __iter__(self) -> Iterator[Breakpoint]:
        return iter(self._set)

    def add(self, machine: Machine[Any], kind: str, target: str, vocabulary: Vocabulary) -> Breakpoint:
        """Set one: kind "phase", "guard" or "if"; raises DebuggerError or ConditionError."""
        number = self._made + 1
        match kind:
            case "phase":
                if target not in machine.phases:
                    raise DebuggerError(f"expected a phase, not {target!r}; phases: {', '.join(machine.phases)}")
                made = Breakpoint(number, "phase", target)
            case "guard":
                if target not in (words := words_of(machine)):
                    guards = sorted(word for word in words if not word.startswith("~"))
                    raise DebuggerError(f"expected a guard, not {target!r}; guards: {', '.join(guards)}")
                made = Breakpoint(number, "guard", target)
            case "if":
                condition = Condition.parse(target, vocabulary)
                made = Breakpoint(number, "if", condition.text, condition)
            case _:
                raise DebuggerError("expected break phase NAME, break guard NAME or break if CONDITION")
        self._made = number
        self._set.append(made)
        return made

    def delete(self, number: int) -> Breakpoint:
        """Take one out."""
        for index, found in enumerate(self._set):
            if found.number == number:
                return self._set.pop(index)
        numbers = ", ".join(str(found.number) for found in self._set) or "none"
        raise DebuggerError(f"there is no breakpoint {number}; breakpoints: {numbers}")

    def at_phase(self, phase: str) -> Breakpoint | None:
        """The one before this phase, if there is one."""
        return next((found for found in self._set if (found.kind, found.target) == ("phase", phase)), None)

    def clear(self) -> None:
        """Take all of them out."""
        self._set.clear()

    def hit(self, run: Run[Any], holds: Judge) -> Breakpoint | None:
        """The first that the step just taken led to."""
        return next((found for found in self._set if found.hit(run, holds)), None)
