"""What TensorRT reports while it builds, and how a build is ended before its time."""

from collections.abc import Callable
from typing import Any

from gpu.tensorrt.library import trt

BuildProgress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all); phases lie in one another, and one whose steps are done is over."""


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Passes on what is reported, until it is told that the build is to end; TensorRT calls it, from any thread."""

    def __init__(self, progress: BuildProgress | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._steps: dict[str, int] = {}  # of the phases that have begun
        self._ended = False
        self.failure: Exception | None = None  # of who was told; the build ends with it

    def end(self) -> None:
        """Let the build end at its next step."""
        self._ended = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """See `IProgressMonitor`."""
        self._steps[phase_name] = num_steps
        self._tell(phase_name, 0, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """See `IProgressMonitor`; False ends the build."""
        self._tell(phase_name, step, self._steps.get(phase_name, step))
        return not self._ended

    def phase_finish(self, phase_name: str) -> None:
        """See `IProgressMonitor`."""
        steps = self._steps.pop(phase_name, 0)
        self._tell(phase_name, steps, steps)

    def _tell(self, *report: Any) -> None:
        if self._progress is None or self._ended:
            return
        try:
            self._progress(*report)
        except Exception as failure:  # TensorRT would print and forget it
            self.failure, self._ended = failure, True
