"""Where the time of the persistent decode kernel goes: the same kernel with one thing left out, or made otherwise.

    python benchmarks/persistent_ablations.py [--shapes 1B ...] [--batches 1 ...] [--only "NAME + NAME" ...]

Each variant is the kernel's source with a few words replaced; names joined by " + " make one variant. Variants that
compute the same must give the same bits; those that leave work out compute nonsense, and only their time counts.
Weights are random, steps follow each other with nobody waiting, medians; the unchanged kernel is measured first and
last, which shows how far times wander.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from gpu_decode import SHAPES, decode_seconds, fill, model_config
from rich.console import Console
from rich.table import Table

from gpu import CudaEngine
from gpu.cuda.compiler import compiled
from gpu.cuda.device import Module
from gpu.cuda.driver import CudaDevice
from gpu.cuda.persistent import defines
from gpu.cuda.shape import Shape, persistent_source


@dataclass(frozen=True)
class Variant:
    """A change of the kernel."""

    name: str
    replaced: tuple[tuple[str, str], ...] = ()
    same_bits: bool = True

    def of(self, source: str) -> str:
        """Give the changed source; raises LookupError if there is nothing to change, which is a mistake in here."""
        for old, new in self.replaced:
            if old not in source:
                raise LookupError(f"the variant {self.name!r} replaces what the kernel does not have: {old!r}")
            source = source.replace(old, new)
        return source

    def __add__(self, other: "Variant") -> "Variant":
        return Variant(
            f"{self.name} + {other.name}", self.replaced + other.replaced, self.same_bits and other.same_bits
        )


def constant(name: str, now: int | str, other: int) -> Variant:
    """Give the variant that has another number."""
    return Variant(f"{name} {other}", ((f" {name} = {now}", f" {name} = {other}"),))


_ATTENDED = "                attend_share(block"
_UNATTENDED = "                if (false) attend_share(block"

# Lanes whose row of a tile is 2, 3, 6 or 7 read its other half first: else they meet those of rows 0, 1, 4 and 5 in the
# same banks of shared memory.
_HALVES = """const u32 at = in_shared(address) ^ (threadIdx.x & 8) * 4;"""
_END_OF_LOAD = "return v;\n}\n__device__ __forceinline__ Octet load_shared("
_SWAPPED = """if (threadIdx.x & 8) return {v.z, v.w, v.x, v.y};
    return v;
}
__device__ __forceinline__ Octet load_shared("""

_LATE = (
    ("stream.ask();\n            enter(", "enter("),
    ("stream.ask_for_newest(1);", "++stream.left, stream.ask();"),
)

_GIVE = """                if (own.lane == (int)(read & nothing)) arrive(&block.empty[own.stage]);
"""
_STEP = "                if (++own.stage == own.places)"

VARIANTS = (
    Variant("given away after the product", ((_GIVE, ""), (_STEP, _GIVE + _STEP))),
    Variant("no attention", ((_ATTENDED, _UNATTENDED),), same_bits=False),
    Variant(
        "no waiting between phases",
        (
            ("wait(awaited, count, block.memory.last_words, 0x100 + phase);", ""),
            ("wait(block.taken[other % SUMS], other / SUMS & 1, memory.last_words, 9);", ""),
        ),
        same_bits=False,
    ),
    Variant(
        "no norm",
        (("const float scale = norm_scale(squares);", "const float scale = squares.of[0];"),),
        same_bits=False,
    ),
    Variant("nothing multiplied", (("multiply_tile(sum, a[", "if (false) multiply_tile(sum, a["),), same_bits=False),
    Variant("keys and values asked for late", _LATE),
    Variant("the next share not fetched early", (("if (next < all && threadIdx", "if (false && threadIdx"),)),
    Variant("halves of a tile in turns", (("const u32 at = in_shared(address);", _HALVES), (_END_OF_LOAD, _SWAPPED))),
    Variant("32 keys and values ahead", (("AHEAD = 16;", "AHEAD = 32;"),)),
    Variant("216 registers", (("registers<224>", "registers<216>"), ("registers<56>", "registers<72>"))),
    constant("EARLY", 2, 1), constant("EARLY", 2, 3),
    constant("URGENT", 3, 2), constant("URGENT", 3, 4), constant("URGENT", 3, 5),
    constant("GIVEN", 7, 0), constant("GIVEN", 7, 6), constant("GIVEN", 7, 8),
    constant("SUMS", 4, 6), constant("EIGHTS", "QUANTIZED ? 2 : 1", 1), constant("EIGHTS", "QUANTIZED ? 2 : 1", 2),
    Variant("a ring of 3 places less", (("least = sizeof", "least = 3 * sizeof(Place) + sizeof"),)),
)  # fmt: skip


NAMED = {variant.name: variant for variant in VARIANTS}
BASE = Variant("as it is")


class Varied(CudaDevice):
    """A device on which the kernel can be exchanged."""

    def vary(self, variant: Variant, shape: Shape, tokens: int) -> None:
        """Take a variant for steps of so many tokens from now on."""
        self.build([Module(variant.of(persistent_source()), defines(shape, tokens))], compiling=lambda: None)
        self._kernels.pop(f"decode_{tokens}", None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1B"], choices=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1], choices=(1, 2, 4, 8))
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--quantize", choices=("int8", "fp8"))
    parser.add_argument("--only", nargs="+", default=list(NAMED), metavar="NAME")
    options = parser.parse_args()
    try:
        chosen = [reduce(Variant.__add__, (NAMED[name] for name in only.split(" + "))) for only in options.only]
    except KeyError as error:
        parser.error(f"there is no variant {error}; there are: {', '.join(NAMED)}")
    shapes = [
        Shape(model_config(name), max(options.batches), options.context + 256, options.quantize)
        for name in options.shapes
    ]
    compile_all([BASE, *chosen], shapes, options.batches)
    for name, shape in zip(options.shapes, shapes, strict=True):
        device = Varied()
        with CudaEngine(
            shape.model, None, rows=shape.rows, capacity=shape.capacity, decode="persistent", quantize=shape.quantize,
            device=device,
        ) as engine:  # fmt: skip
            for batch in options.batches:
                table = Table(
                    "variant",
                    "ms a step",
                    "against it as it is",
                    "bits",
                    title=f"{name}, batch {batch}, context {options.context}, {shape.quantize or 'bfloat16'}",
                )
                first: float | None = None
                bits: bytes | None = None
                for variant in (BASE, *chosen, BASE):
                    device.vary(variant, shape, batch)
                    engine.clear_cuda_graphs()
                    seconds, found = measure(engine, batch, options.context)
                    clear_counters(engine)
                    first, bits = first or seconds, bits or found
                    same = "the same" if found == bits else "others" if variant.same_bits else "nonsense, as meant"
                    table.add_row(variant.name, f"{seconds * 1e3:.4f}", f"{(seconds - first) * 1e6:+.1f} µs", same)
                Console(width=130).print(table)


def compile_all(variants: Sequence[Variant], shapes: Sequence[Shape], batches: Sequence[int]) -> None:
    """Compile all that is run, as much at once as there are processors: it is loaded from the cache."""
    sizes = sorted({1 << n for batch in batches for n in range(batch.bit_length())})
    device = CudaDevice()
    modules = [module for shape in shapes for module in shape.modules(device.capability)]
    modules += [
        Module(variant.of(persistent_source()), defines(shape, size))
        for shape in shapes
        for variant in variants
        for size in (sizes if variant is BASE else batches)
    ]
    compiled(modules, device.architecture)


def clear_counters(engine: CudaEngine) -> None:
    """Have the next kernel begin as every step does: who waits for nothing may leave counters anywhere."""
    counters = engine._arena.lines("counters")
    engine._staging.write(counters, np.zeros(counters.width // 4, np.uint32))


def measure(engine: CudaEngine, batch: int, context: int) -> tuple[float, bytes]:
    """Give the seconds of a step, and the logits of one."""
    rows = engine.kv_cache.acquire(batch)
    fill(engine, rows, context)
    engine.decode(rows)
    found = b"".join(engine.read_logits(row).tobytes() for row in rows)
    engine.kv_cache.release(rows)
    return decode_seconds(engine, batch, context), found


if __name__ == "__main__":
    main()
