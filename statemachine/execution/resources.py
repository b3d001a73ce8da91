"""What stands behind a context besides its host fields: rows of an engine, say. The default: nothing does."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Context = TypeVar("Context")
Arrays = Mapping[str, "npt.NDArray[np.generic]"]


class Resources(Generic[Context]):
    """Override what your context needs; a run calls each method between two steps only."""

    def sync(self, context: Context) -> None:
        """The host fields were set by time travel, an edit, a payload or a load: make all else agree with them."""

    def rebuild(self, context: Context) -> None:
        """The host fields were set by a record alone, and nothing stands behind them yet: make it anew."""
        self.sync(context)

    def fork(self, context: Context) -> Context:
        """A context for a second run, with resources of its own that hold what these hold."""
        return copy.copy(context)

    def save(self, context: Context, **options: Any) -> Arrays:
        """Named arrays that a snapshot must hold besides the host fields; raises ValueError for an unknown option."""
        if options:
            raise ValueError(f"a snapshot of this run takes no options, but {', '.join(options)} came")
        return {}

    def load(self, context: Context, arrays: Arrays, **options: Any) -> None:
        """Take back what `save` gave, in another process perhaps; raises ValueError if it does not fit."""

    def release(self, context: Context) -> None:
        """The run has ended; nothing of it will be asked for again. What it raises is told, and changes nothing.

        Called once, or again if an interrupt may have cut it short.
        """

    def environment(self) -> dict[str, Any]:
        """Everything outside the machine that can change a bit, as plain JSON values."""
        return {}
