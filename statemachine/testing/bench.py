"""Where one example of a test is tried: it makes contexts, runs and files, and clears them away."""

import copy
import tempfile
from pathlib import Path
from typing import Any

from statemachine.definition.machine import Interpreter
from statemachine.execution import host_state
from statemachine.execution.resources import Resources
from statemachine.execution.run import Run
from statemachine.record.writer import JournalWriter
from statemachine.testing.coverage import Coverage
from statemachine.testing.given import Given
from statemachine.testing.watch import Watch


class Bench:
    """What the runs of one example have in common.

    Attributes
    ----------
    watch, machine
        The watch, and the machine that it watches.
    origin
        The host fields of the first context before its run.
    """

    def __init__(self, given: Given, coverage: Coverage) -> None:
        self.given = given
        self.coverage = coverage
        self.watch: Watch[Any] = Watch(given.state, given.pinned, given.resources.sync)
        self.machine = self.watch.machine(given.machine)
        self.origin: dict[str, Any] = {}
        self._interpreter: Interpreter = "compiled"
        self._digest_every = 0
        self._folder = tempfile.TemporaryDirectory(prefix="machine-rules-")
        self._files = 0
        self._runs: list[Run[Any]] = []
        self._contexts: list[Any] = []

    def begin(self, context: Any, interpreter: Interpreter, digest_every: int) -> Run[Any]:
        """The first run, over a context that nothing has touched."""
        self._interpreter, self._digest_every = interpreter, digest_every
        self._contexts.append(context)
        self.watch.check_buffers(context, "somebody")
        self.origin = host_state.save(context)
        return self.run(context)

    def run(self, context: Any, *, journalled: bool = True) -> Run[Any]:
        """A run over this context that is watched."""
        run = Run(
            self.machine, context, interpreter=self._interpreter, resources=self.given.resources, keep=True,
            journal=self.journal() if journalled else None, digest_every=self._digest_every,
        )  # fmt: skip
        self._runs.append(run)
        return run

    def fork(self, run: Run[Any], at: int | None) -> Run[Any]:
        """A fork of a run, with a journal of its own."""
        fork = run.fork(at, journal=self.journal())
        self._runs.append(fork)
        self._contexts.append(fork.context)
        return fork

    def second(self, context: Any) -> Any:
        """Another context with resources of its own, as the first one was before its run."""
        resources = self.given.resources
        if type(resources).fork is Resources.fork:
            try:
                second = copy.deepcopy(context)
            except TypeError as error:
                raise TypeError(
                    f"{type(context).__name__} cannot be copied ({error}): pass resources= with a fork() of its own"
                ) from error
        else:
            second = resources.fork(context)
        self._contexts.append(second)
        host_state.restore(second, self.origin)
        resources.sync(second)
        return second

    def file(self, kind: str) -> Path:
        """A path that was not used yet."""
        self._files += 1
        return Path(self._folder.name) / f"{self._files}.{kind}"

    def journal(self) -> JournalWriter:
        return JournalWriter(self.file("journal"))

    def clear(self) -> None:
        """Close every run and every context, and remove the files."""
        for run in self._runs:
            run.close()
        for context in self._contexts:
            self.given.close(context)
        self._folder.cleanup()
