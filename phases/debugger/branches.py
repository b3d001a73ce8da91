"""The runs that stand side by side: the first one, its forks, and what was loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from phases.debugger.errors import DebuggerError
from phases.debugger.failure import Failure
from statemachine import Run

Context = TypeVar("Context")


@dataclass(slots=True)
class Branch(Generic[Context]):
    """One of the runs that the debugger holds."""

    number: int
    run: Run[Context]
    origin: str = ""  # "fork of 1 at step 5", "loaded from FILE"
    row: int = 0  # of a context that has several, the one that is shown
    failure: Failure | None = None  # why it failed, if it did

    def __str__(self) -> str:
        return f"{self.number}" + (f" ({self.origin})" if self.origin else "")


class Branches(Generic[Context]):
    """The runs that are open, and which of them is shown: there is always one."""

    def __init__(self, run: Run[Context], origin: str = "") -> None:
        self._open = [Branch(1, run, origin)]
        self._made = 1
        self.current = 0  # index of the one that is shown

    def __iter__(self) -> Iterator[Branch[Context]]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def shown(self) -> Branch[Context]:
        return self._open[self.current]

    @property
    def next(self) -> int:
        """The number that the next run will have."""
        return self._made + 1

    def open(self, run: Run[Context], origin: str, row: int = 0) -> Branch[Context]:
        """Hold another run, and show it."""
        self._made += 1
        self._open.append(Branch(self._made, run, origin, row))
        self.current = len(self._open) - 1
        return self.shown

    def switch(self, number: int | None = None) -> Branch[Context]:
        """Show another run; unless its number is given, the next one."""
        if number is None:
            self.current = (self.current + 1) % len(self._open)
            return self.shown
        for index, branch in enumerate(self._open):
            if branch.number == number:
                self.current = index
                return branch
        raise DebuggerError(f"there is no run {number}; runs: {', '.join(str(b.number) for b in self._open)}")

    def close_shown(self) -> Branch[Context]:
        """Close the run that is shown and give back what it holds."""
        if len(self._open) == 1:
            raise DebuggerError("this is the only run: quit to leave")
        closed = self._open.pop(self.current)
        closed.run.close()
        self.current = min(self.current, len(self._open) - 1)
        return closed

    def close(self) -> None:
        """Close all of them."""
        for branch in self._open:
            branch.run.close()
