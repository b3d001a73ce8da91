"""Which matrices of a checkpoint are quantised, and which of them are one in the graph, as they multiply the same."""

from typing import NamedTuple

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.index import expected_tensors

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class Product(NamedTuple):
    """A matrix [out, in] in the graph: one of the checkpoint, or several, one below the other."""

    name: str
    parts: dict[str, int]  # rows of each of the checkpoint's matrices
    columns: int

    def first(self, part: str) -> int:
        """Give the row that one of the checkpoint's matrices begins at."""
        names = list(self.parts)
        return sum(self.parts[name] for name in names[: names.index(part)])

    @property
    def shape(self) -> tuple[int, int]:
        """The rows of all parts, and the columns."""
        return sum(self.parts.values()), self.columns


def products(model: ModelConfig) -> dict[str, Product]:
    """Give for each matrix that is quantised, by its name in the checkpoint, what it is part of.

    The table of embeddings is never one, but the head's matrix is; where both are the same, its product has the head's
    name.
    """
    shapes = expected_tensors(model)
    found = {}
    for name, shape in shapes.items():
        if is_linear(name):
            at, _, projection = name.removesuffix(".weight").rpartition(".")
            joined, names = next(
                ((joined, names) for joined, names in _JOINED.items() if projection in names),
                (projection, (projection,)),
            )
            parts = {part: shapes[part][0] for part in (f"{at}.{name}.weight" for name in names)}
            found[name] = Product(f"{at}.{joined}.weight", parts, shape[1])
        elif name == (EMBEDDINGS if model.tied_embeddings else HEAD):
            found[name] = Product(HEAD, {name: shape[0]}, shape[1])
    return found


def is_linear(name: str) -> bool:
    """Whether a tensor is the matrix of a linear layer."""
    return name.endswith("_proj.weight")
