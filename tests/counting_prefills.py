"""An engine that counts the rows whose prompts it computed."""

from collections.abc import Sequence
from typing import Any


class CountingPrefills:
    """Hands each call on to a real one."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.prefilled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prefill(self, rows: Sequence[int]) -> None:
        self.prefilled += len(rows)
        self._engine.prefill(rows)
