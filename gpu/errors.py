"""The errors that a user of an engine can meet."""

from collections.abc import Mapping


class CheckpointError(ValueError):
    """A checkpoint cannot be found, is damaged, or holds something that no engine here supports."""


class AdapterError(CheckpointError):
    """A LoRA adapter cannot be found, is damaged, is not one of this model, or needs what no engine here supports."""


class ExportError(ValueError):
    """An export cannot be made as asked, is damaged, or is not the one that is needed."""


class PlanError(ValueError):
    """A plan cannot be built as asked, is damaged, or is not for this machine."""


class CapacityError(ValueError):
    """Tokens or a capacity were asked for that do not fit."""


class NoFreeRows(RuntimeError):
    """More rows were asked for than are free."""


class LogitsError(ValueError):
    """A row of logits holds no distribution: NaN, +inf, or nothing but -inf.

    Attributes
    ----------
    rows
        What is wrong, by row of the engine; empty if whoever found it knows of no rows.
    """

    def __init__(self, message: str, rows: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.rows = dict(rows or {})

    @classmethod
    def of(cls, rows: "Mapping[int, LogitsError]") -> "LogitsError":
        """All of these, one at least, in one."""
        words = {row: str(error) for row, error in rows.items()}
        return cls(next(iter(words.values())), words)


class SelfCheckError(RuntimeError):
    """An engine failed its check at load: decode does not continue what prefill began."""


class ForkedError(RuntimeError):
    """An engine was used in a child of os.fork; it belongs to the process that loaded it."""


class OptionError(ValueError):
    """An engine has no such option, or not with this value."""


class DeviceError(RuntimeError):
    """A device cannot be used, or has failed; after a failed kernel no call of this process reaches it any more."""
