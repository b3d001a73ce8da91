"""A decode step as one kernel that stays on the device: for which models and devices, and how it is launched."""

from dataclasses import dataclass

import numpy as np

from gpu.cuda.arena import Arena, Array, Plan
from gpu.cuda.device import Device, Module
from gpu.cuda.paths import PERSISTENT, no_device
from gpu.cuda.shape import Shape, persistent_source
from gpu.cuda.staging import Staging

_SIZES = (1, 2, 4, 8)  # tokens of a step
_THREADS, _SHARED = 384, 232_448  # of a block: all that there is of a multiprocessor's shared memory
_WARPS = 8
_COUNTER = 32  # numbers from one counter to the next


def missing(shape: Shape, device: Device) -> str | None:
    """Say why there is no such kernel for this model on this device, or give None."""
    if (wrong := no_device(PERSISTENT, device.capability)) is not None:
        return wrong
    if shape.model.qk_norm:
        return "the model normalises its heads"
    for product in shape.products.values():
        if product.k % (32 * _WARPS):
            return f"the matrices of `{product.name}` have {product.k} columns, not a multiple of {32 * _WARPS}"
    return None


def state(shape: Shape) -> Plan:
    """Plan the memory that it needs besides that of the other kernels."""
    layers = shape.model.layers
    return {
        "counters": Array(((5 * layers + 4) * _COUNTER,), "uint32"),  # see ring.cu
        "clocks": Array((5 * layers + 3,), "uint64"),
        "memory": Array((32,), "int64"),
    }


def defines(shape: Shape, tokens: int, *, clocked: bool = False) -> tuple[str, ...]:
    """Give the macros of the kernel for so many tokens: or of that which looks at the clock between phases."""
    sizes = f"TOKENS_OF_STEP={tokens}", f"SHARED_OF_BLOCK={_SHARED}"
    return *shape.defines(), *sizes, *(["CLOCKED"] if clocked else [])


def sizes(shape: Shape) -> list[int]:
    """Give the tokens of the steps that such a kernel is for, as many as there are rows for."""
    return [size for size in _SIZES if size <= shape.slots]


def modules(shape: Shape) -> list[Module]:
    """Give the kernels for steps of all sizes."""
    return [Module(persistent_source(), defines(shape, tokens)) for tokens in sizes(shape)]


@dataclass(slots=True, frozen=True)
class Persistent:
    """Launches it on memory that was bound once; see `struct Memory` of ring.cu."""

    device: Device
    shape: Shape
    arena: Arena
    last_words: np.ndarray  # where, block and thread of a wait that did not end

    @property
    def sizes(self) -> list[int]:
        return sizes(self.shape)

    def decode(self, tokens: int, *, clocked: bool = False) -> None:
        """Take the token that was drawn for each row of the step through all layers, to its logits; count on.

        The kernel for so many tokens was built, or that which looks at the clock between phases.
        """
        kernel = f"{'clocked' if clocked else 'decode'}_{tokens}"
        self.device.launch(
            kernel, (self.device.processors, 1, 1), _THREADS, self.arena.at("memory"), shared=_SHARED, together=True
        )


def bind(device: Device, shape: Shape, weights: Arena, arena: Arena, staging: Staging) -> Persistent:
    """Tell the kernel where everything lies."""
    stride = weights.at("1.qkv") - weights.at("0.qkv") if shape.model.layers > 1 else 0
    address, words = device.pinned(12)
    words[:] = 0
    first = weights.at("0.input_norm")
    places = [
        weights.optional("embedding") or weights.at("head"),
        *(weights.at(f"0.{name}") for name in ("qkv", "output", "gate_up", "down")),
        weights.at("head"),
        *(weights.optional(f"0.{name}_bias") for name in ("qkv", "output", "gate_up", "down")),
        weights.at("0.inner_norm"), first, weights.at("final_norm"), stride,
        *(arena.at(name) for name in ("residual", "squares", "qkv", "logits", "partials", "normed", "attended")),
        *(arena.at(name) for name in ("inner", "kv_cache", "rope", "drawn")), arena.at("step", 0), arena.at("step", 1),
        arena.at("arrivals"), arena.at("counters"), address, arena.at("clocks"),
    ]  # fmt: skip
    block = np.zeros(arena.lines("memory").width // 8, np.uint64)
    block[: len(places)] = places
    staging.write(arena.lines("memory"), block)
    return Persistent(device, shape, arena, words.view(np.uint32))
