"""What an export says of itself: of which model it is, and for what it was made."""

from dataclasses import dataclass, fields, replace
from typing import Self

from gpu.errors import ExportError
from gpu.onnx.codes import CODES
from gpu.printable import printable

FORMAT = 6  # of the graph and its files; another number is another graph
DTYPES = ("float32", "bfloat16", "float16")
_PREFIX = "phasewalk."


@dataclass(slots=True, frozen=True)
class Identity:
    """The metadata of an export, apart from the format's number.

    Raises
    ------
    ExportError
        If there is no such dtype or quantisation, or a number makes no sense.
    """

    fingerprint: str  # of the checkpoint, see `model_fingerprint`
    dtype: str = "float32"  # of weights, activations and cache; logits are float32
    capacity: int | None = None  # positions of a row; None: whatever is bound
    max_batch: int | None = None  # rows that run together; None: any number
    weights: str = ""  # the fingerprint of the data file, once it is written
    quantize: str | None = None  # how the matrices of products are quantised, if they are
    lora_rank: int | None = None  # of adapters at most; None: the graph takes none

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ExportError(f"there is no dtype {printable(self.dtype, 80)}: expected one of {', '.join(DTYPES)}")
        if self.quantize not in (None, *CODES):
            raise ExportError(
                f"weights are not quantised as {printable(self.quantize, 80)}: expected {' or '.join(CODES)}"
            )
        for name in ("capacity", "max_batch", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ExportError(f"{name} is {value}, expected at least 1")

    def with_weights(self, weights: str) -> Self:
        """Give the identity of an export whose data file is written."""
        return replace(self, weights=weights)

    def metadata(self) -> dict[str, str]:
        """Give what stands in the metadata of the graph's file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {
            "quantize": self.quantize or "none",
            "lora_rank": self.lora_rank or "none",
        }
        return {f"{_PREFIX}{name}": _written(value) for name, value in {"format": FORMAT, **values}.items()}

    @classmethod
    def of(cls, metadata: dict[str, str]) -> "Identity":
        """Read metadata back.

        Raises
        ------
        ExportError
            If it is not that of an export, or that of another version.
        """
        found = {name.removeprefix(_PREFIX): value for name, value in metadata.items() if name.startswith(_PREFIX)}
        version = found.pop("format", None)
        if version is None:
            raise ExportError("it says nothing of a phasewalk export: its metadata names no format")
        if version != str(FORMAT):
            raise ExportError(f"it has format {printable(version, 80)}, this version reads and writes {FORMAT}")
        try:
            return cls(
                fingerprint=found["fingerprint"],
                dtype=found["dtype"],
                capacity=_number(found["capacity"]),
                max_batch=_number(found["max_batch"]),
                weights=found["weights"],
                quantize=None if found["quantize"] == "none" else found["quantize"],
                lora_rank=None if found["lora_rank"] == "none" else int(found["lora_rank"]),
            )
        except (KeyError, ValueError) as error:
            raise ExportError(f"its metadata makes no sense: {printable(error)}") from None


def _written(value: str | int | None) -> str:
    return "any" if value is None else str(value)


def _number(text: str) -> int | None:
    return None if text == "any" else int(text)
