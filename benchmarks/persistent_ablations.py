"""Where the time of the persistent decode kernel goes: the same kernel with one thing left out, or made otherwise.

    python benchmarks/persistent_ablations.py [--shape 1B] [--batch 1] [--context 128] [--only NAME ...]

Each variant is the kernel's source with a few words replaced. Variants that compute the same must give the same bits;
those that leave work out compute nonsense, and only their time counts. Weights are random, steps follow each other with
nobody waiting, medians; the unchanged kernel is measured first and last, which shows how far times wander.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from gpu_decode import SHAPES, decode_seconds, fill, model_config
from rich.console import Console
from rich.table import Table

from gpu import CudaEngine
from gpu.cuda.compiler import compiled
from gpu.cuda.driver import CudaDevice
from gpu.cuda.persistent import defines
from gpu.cuda.shape import Shape, bucket, persistent_source


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


def constant(name: str, now: int, other: int) -> Variant:
    """Give the variant that has another number."""
    return Variant(f"{name} {other}", ((f" {name} = {now}", f" {name} = {other}"),))


_ATTENDED = "index);\n                attend_part("
_UNATTENDED = "index);\n                if (false) attend_part("

# Lanes whose row of a tile is 2, 3, 6 or 7 read its other half first: else they meet those of rows 0, 1, 4 and 5 in the
# same banks of shared memory.
_HALVES = """const u32 at = in_shared(address) ^ (threadIdx.x & 8) * 4;"""
_END_OF_LOAD = "return v;\n}\n__device__ __forceinline__ Octet load_shared("
_SWAPPED = """if (threadIdx.x & 8) return {v.z, v.w, v.x, v.y};
    return v;
}
__device__ __forceinline__ Octet load_shared("""

# While the ring is full, memory would rest: weights are fetched into the L2 cache, a chunk every so many cycles, about
# as fast as memory gives them (fetched as fast as can be they hold up everything else). Whose they are does not matter:
# all blocks share that cache. Each block takes every so manieth ticket, from its own on.
_COUNTED = "u32 parity = 0, landed_parity = 0;\n    while (ticket.phase != NO_PHASE) {"
_WARMED = """u32 parity = 0, landed_parity = 0, number = numbers[0], warm = 0;  // the ticket that is being fetched
    int bytes = 0, asked = (int)clock();                                   // of it, and when the last ones were
    while (ticket.phase != NO_PHASE) {"""
_FULL = "wait(block.empty[stage], parity ^ 1, words, 2);"
_FETCHING = """for (u32 looks = 0; !is_given(&block.empty[stage], parity ^ 1);) {
                        if (++looks == PATIENCE) give_up(words, 2);
                        if ((int)clock() - asked < PACE) continue;
                        asked = (int)clock();
                        if (warm < number) warm = number, bytes = (int)(from - (const char*)ticket.from);
                        if (warm >= number + REACH * gridDim.x) continue;
                        const Ticket at = ticket_of(memory, warm);
                        if (at.phase == NO_PHASE) continue;
                        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
                                     ::"l"((const char*)at.from + bytes), "r"(at.chunk) : "memory");
                        bytes += at.chunk;
                        if (bytes >= at.units * at.chunks * at.chunk) warm += gridDim.x, bytes = 0;
                    }"""
_PASSED_ON = "ticket = next;\n"


def fetched_early(pace: int, reach: int) -> Variant:
    """Give the variant that fetches into the L2 cache: a chunk every `pace` cycles, of so many tickets."""
    fetching = _FETCHING.replace("PACE", str(pace)).replace("REACH", str(reach))
    passed_on = _PASSED_ON + "            number = numbers[(i + 1) % DRAWN_AHEAD];\n"
    return Variant(
        f"into L2 every {pace} cycles, {reach} tickets",
        ((_COUNTED, _WARMED), (_FULL, fetching), (_PASSED_ON, passed_on)),
    )


VARIANTS = (
    Variant("no attention", ((_ATTENDED, _UNATTENDED),), same_bits=False),
    Variant(
        "no waiting between phases",
        (("wait(awaited, count, block.memory.last_words, 0x100 + phase);", ""),),
        same_bits=False,
    ),
    Variant(
        "no norm",
        (("const float scale = norm_scale(squares);", "const float scale = squares.of[0];"),),
        same_bits=False,
    ),
    Variant("nothing multiplied", (("multiply(sum, with.", "if (false) multiply(sum, with."),), same_bits=False),
    Variant("no fence before a place is given away", (("fence_copies();\n                __sync", "__sync"),)),
    Variant("keys not fetched early", (("prefetch_split(cached(", "if (false) prefetch_split(cached("),)),
    Variant("halves of a tile in turns", (("const u32 at = in_shared(address);", _HALVES), (_END_OF_LOAD, _SWAPPED))),
    constant("EARLY", 2, 1), constant("EARLY", 2, 3), constant("EARLY", 2, 5),
    constant("URGENT", 5, 3), constant("URGENT", 5, 8),
    constant("ALONE", 256, 0), constant("ALONE", 256, 1024),
    constant("DRAWN_AHEAD", 4, 2), constant("DRAWN_AHEAD", 4, 8),
    Variant("a ring of 3 places less", (("least = sizeof", "least = 3 * sizeof(Place) + sizeof"),)),
    constant("SUMS", 6, 4),  # a longer ring, for some
    *(fetched_early(pace, reach) for pace in (600, 1000, 1600) for reach in (2, 4)),
)  # fmt: skip


class Varied(CudaDevice):
    """A device that compiles a variant of the kernel."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._variant = variant

    def build(self, source: str, defines: Sequence[str], *, compiling: Callable[[], None]) -> None:
        if source == persistent_source():
            source = self._variant.of(source)
        super().build(source, defines, compiling=compiling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1B", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS], metavar="NAME")
    options = parser.parse_args()
    base = Variant("as it is")
    chosen = [variant for variant in VARIANTS if options.only is None or variant.name in options.only]
    shape = Shape(model_config(options.shape), options.batch, options.context + 256)
    compile_all([base, *chosen], shape)
    table = Table(
        "variant",
        "ms a step",
        "against it as it is",
        "bits",
        title=f"{options.shape}, batch {options.batch}, context {options.context}",
    )
    first: float | None = None
    bits: bytes | None = None
    for variant in (base, *chosen, base):
        seconds, found = measure(variant, shape, options.context)
        first, bits = first or seconds, bits or found
        same = "the same" if found == bits else "others" if variant.same_bits else "nonsense, as meant"
        table.add_row(variant.name, f"{seconds * 1e3:.4f}", f"{(seconds - first) * 1e6:+.1f} µs", same)
    Console(width=110).print(table)


def compile_all(variants: Sequence[Variant], shape: Shape) -> None:
    """Compile all variants at once, as many as there are processors, so that each is in the cache when it is loaded."""
    architecture = CudaDevice().architecture
    sizes = [1 << n for n in range(bucket(shape.rows).bit_length())]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # a fork would have the device's memory
        for each in [
            pool.submit(compile_one, variant, shape, size, architecture) for variant in variants for size in sizes
        ]:
            each.result()


def compile_one(variant: Variant, shape: Shape, tokens: int, architecture: str) -> None:
    """Compile a variant for steps of so many tokens, with the options that `CudaDevice.build` gives."""
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        *(f"-D{define}" for define in defines(shape, tokens)),
    ]
    compiled(variant.of(persistent_source()), options)


def measure(variant: Variant, shape: Shape, context: int) -> tuple[float, bytes]:
    """Give the seconds of a step, and the logits of one."""
    with CudaEngine(
        shape.model, None, rows=shape.rows, capacity=shape.capacity, decode="persistent", device=Varied(variant)
    ) as engine:
        rows = engine.kv_cache.acquire(shape.rows)
        fill(engine, rows, context)
        engine.decode(rows)
        found = b"".join(engine.read_logits(row).tobytes() for row in rows)
        engine.kv_cache.release(rows)
        return decode_seconds(engine, shape.rows, context), found


if __name__ == "__main__":
    main()
