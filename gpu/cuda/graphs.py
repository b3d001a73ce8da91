"""Sequences of launches as graphs: one launch each, recorded when they are first used."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from gpu.cuda.device import Device, Graph

Key = tuple[Hashable, ...]


@dataclass(slots=True)
class GraphCache:
    """The graphs of an engine, by a key that tells one sequence of launches from another.

    A key holds what the launches differ by: what is run, the number of tokens, the shape of the grids. Everything else
    that a graph has in it, the addresses above all, is bound when the engine is loaded and never changes.
    """

    device: Device
    hits: int = 0
    captures: int = 0
    fallbacks: int = 0  # runs as plain launches, as the sequence could not be recorded
    _graphs: dict[Key, Graph | None] = field(default_factory=dict)

    def run(self, key: Key, work: Callable[[], None]) -> None:
        """Launch the graph of this key; `work` makes its launches if it has to be recorded first."""
        if key not in self._graphs:
            self._graphs[key] = self._record(work)
        graph = self._graphs[key]
        if graph is None:
            self.fallbacks += 1
            work()
        else:
            self.hits += 1
            graph.launch()

    def clear(self) -> None:
        """Forget all graphs; they are recorded again."""
        self._graphs.clear()

    def _record(self, work: Callable[[], None]) -> Graph | None:
        self.captures += 1
        try:
            return self.device.capture(work)
        except Exception:  # of the driver: whatever it is, plain launches do the same
            return None
