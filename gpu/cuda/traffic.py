"""How many bytes each operation of a forward pass has to move: what it reads and what it writes, everything once."""

from dataclasses import dataclass

from gpu.cuda.shape import Shape
from gpu.cuda.tiles import COLUMNS, up

# In the order in which they are launched; the name of a kernel begins with that of its operation.
OPERATIONS = ("embed", "scales", "qkv", "rope", "attention", "output", "gate_up", "down", "head", "sample")


@dataclass(slots=True, frozen=True)
class Traffic:
    """Bytes of one launch; what lies between two kernels (`between`) seldom leaves the device's own cache."""

    weights: int = 0
    cache: int = 0
    between: int = 0

    @property
    def all(self) -> int:
        return self.weights + self.cache + self.between


def operation(kernel: str) -> str | None:
    """Name the operation that a kernel is for, if it is one of a forward pass."""
    return max((name for name in OPERATIONS if kernel.startswith(name)), key=len, default=None)


def traffic(shape: Shape, *, tokens: int, attended: int, ended: int) -> dict[str, Traffic]:
    """Count the bytes of each operation.

    Parameters
    ----------
    shape : Shape
        Of the model.
    tokens : int
        How many go through the layers.
    attended : int
        How many positions of the cache they attend to, where tokens of one row share what is read.
    ended : int
        How many of them have their logits computed.
    """
    model, plan = shape.model, shape.weights()

    def weights(*names: str) -> int:
        with_more = (name + more for name in names for more in ("", "_scale", "_bias"))
        return sum(plan[name].nbytes for name in with_more if name in plan)

    position = 2 * model.kv_heads * model.head_dim * 2  # bytes of a token's keys and values in a layer
    x, normed = tokens * up(model.hidden, COLUMNS) * 4, tokens * model.hidden * 2
    squares = tokens * -(-model.hidden // 8) * 4
    given = normed + squares  # what a product gets that begins with a norm
    queries, attended_to = tokens * model.heads * model.head_dim * 4, tokens * model.heads * model.head_dim * 2
    qkv, inner = tokens * shape.qkv_width * 4, tokens * model.intermediate * 2
    kept = tokens * position
    found = {
        "embed": Traffic(weights("0.input_norm"), 0, tokens * shape.embedding_bytes + x + given),
        "scales": Traffic(0, 0, squares + tokens * 4),
        "qkv": Traffic(weights("0.qkv"), 0, given + qkv)
        if model.qk_norm
        else Traffic(weights("0.qkv"), kept, given + queries),
        "rope": Traffic(weights("0.query_norm", "0.key_norm"), kept, qkv + queries),
        "attention": Traffic(0, attended * position, queries + attended_to),
        "output": Traffic(weights("0.output", "0.inner_norm"), 0, attended_to + 2 * x + given),
        "gate_up": Traffic(weights("0.gate_up"), 0, given + inner),
        "down": Traffic(weights("0.down", "0.input_norm"), 0, inner + 2 * x + given),  # the next norm
        "head": Traffic(weights("head"), 0, ended * (model.hidden * 2 + -(-model.hidden // 8) * 4 + model.vocab * 4)),
        "sample": Traffic(0, 0, tokens * model.vocab * 4),
    }
    return found if model.qk_norm else {name: moved for name, moved in found.items() if name != "rope"}
