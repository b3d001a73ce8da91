"""What the kernels are told of a model, and the memory that they work in; the other side of `kernels/*.cu`."""

import hashlib
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

from gpu.checkpoint.config import ModelConfig
from gpu.cuda.arena import Array, Plan
from gpu.cuda.device import Module
from gpu.cuda.drawing import BINS
from gpu.cuda.tiles import COLUMNS, ROWS, tiled_shape, up
from gpu.errors import CheckpointError, OptionError
from gpu.penalties import MOST_STOPS

_SHARED = (
    "common.cu",
    "hopper.cu",
    "attention.cu",
    "attention_step.cu",
    "products.cu",
)  # no kernels, but what makes them
_DRAWING = ("penalties.cu", "sampling.cu", "masking.cu")
_PRODUCTS = ("qkv", "output", "gate_up", "down", "head")
CHUNK = 2048  # tokens of prompts that go through the layers together
SPLIT = 512  # positions; this and what follows: see attention.cu
_BLOCK = 64  # positions
FEW = 32  # tokens of prompts that attend as those of a step do
_SHARE = 8192  # logits, about; see sampling.cu
_CODES = {None: 0, "int8": 1, "fp8": 2}  # as in common.cu
_WIDE_FROM, _WIDE_FROM_OF_CODES = 33, 129  # tokens
_WIDE_TILES = {(128, 192): 1.37, (64, 64): 0.46, (64, 32): 0.35}  # tokens and rows of a tile: its time, in proportion
_WIDE_MEMORY = 227 * 1024
_WIDE_CAPABILITY = (9, 0)
_UNIT = 8  # numbers of the residual stream under one sum of squares
_LOG2_E = 1.4426950408889634
_HEAD_DIMS = range(8, 257, 8)


def sources(*, wide: bool, adapters: bool) -> list[str]:
    """Give the kernels as texts that compile apart, those that take longest first.

    On request those of wide.cu, and those of adapters.cu, too.
    """
    parts = [_part(f"{name}.cu", f"PRODUCTS({name}, {name.upper()})\n") for name in _PRODUCTS]
    parts += [_joined("penalties.cu", "sampling.cu", "loading.cu"), _joined("attention_prompt.cu")]
    parts += [_joined("steps.cu", *(["adapters.cu"] if adapters else []))]
    parts += [_joined("masking.cu")]  # by itself: NVRTC dies of it behind sampling.cu
    if wide:
        parts[:0] = [
            _part(f"{name}_{tokens}x{rows}.cu", f"WIDE({name}, {name.upper()}, {tokens}, {rows})\n")
            for tokens, rows in _WIDE_TILES
            for name in _PRODUCTS
            if name != "head"
        ]
    shared = _joined(*_SHARED, "wide.cu")
    return [shared + part for part in parts]


def persistent_source() -> str:
    """Give the kernel of a whole step as one text."""
    return _joined(*_SHARED, "ring.cu", "producer.cu", "consumers.cu", "finishers.cu", "persistent.cu")


def measuring_source() -> str:
    """Give the kernels that a device is measured with as one text."""
    return _joined("common.cu", "measuring.cu")


def _joined(*names: str) -> str:
    return "".join(_part(name, (files("gpu.cuda") / "kernels" / name).read_text()) for name in names)


def _part(name: str, text: str) -> str:
    return f'#line 1 "{name}"\n{text}'


def bucket(tokens: int) -> int:
    """Give the number of tokens for which a graph is recorded that serves so many: a power of two."""
    return 1 << (tokens - 1).bit_length()


def prompt_bucket(tokens: int) -> int:
    """Give the number of tokens for which a graph is recorded that feeds so many of prompts."""
    return max(16, bucket(tokens)) if tokens <= 256 else up(tokens, 256)


def _up_div(count: int, by: int) -> int:
    return -(-count // by)


class Launch(NamedTuple):
    """A kernel, and how it is launched."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int = 0  # bytes


@dataclass(slots=True, frozen=True)
class Product:
    """A matrix product as it is launched: [n, k] times so many tokens."""

    name: str
    n: int
    k: int

    def launch(self, tokens: int, processors: int) -> Launch:
        """Name the kernel for so many tokens, and give its grid; see `Block` in products.cu."""
        most = next((size for size in (8, 16, 32) if tokens <= size), 64)
        units = 4 if most == 32 and self.n >= 8192 else 2 if most > 16 or self.n >= 2048 else 1
        blocks = _up_div(self.n, 8 * units)
        if self.n >= 2048:  # they go on with the next units
            blocks = min(blocks, processors * (1 if most > 16 else 3 if most == 8 and self.name == "head" else 2))
        return Launch(f"{self.name}_{most}", (blocks, _up_div(tokens, most), 1), 256)

    def launch_wide(self, tokens: int, processors: int) -> Launch:
        """Give the launch of wide.cu for so many tokens: that which should be done first."""

        def blocks(tile: tuple[int, int]) -> int:
            return _up_div(tokens, tile[0]) * _up_div(self.n, tile[1])

        tile = min(_WIDE_TILES, key=lambda tile: _up_div(blocks(tile), processors) * _WIDE_TILES[tile])
        threads = 128 + 2 * tile[0]  # a warpgroup for 64 tokens, and one that has everything brought
        kernel = f"{self.name}_{tile[0]}x{tile[1]}"
        return Launch(kernel, (min(blocks(tile), processors), 1, 1), threads, _WIDE_MEMORY)


@dataclass(slots=True, frozen=True)
class Shape:
    """A model, how many tokens and adapters there is room for, and what matrices are rounded to if not to bfloat16."""

    model: ModelConfig
    rows: int
    capacity: int
    quantize: str | None = None
    adapters: int = 0  # that there is room for
    lora_rank: int = 0  # of each of them at most

    def check(self) -> None:
        """Raise OptionError if there are no such codes, and CheckpointError if no kernel is made for such a model."""
        if self.quantize not in _CODES:
            names = " or ".join(name for name in _CODES if name)
            raise OptionError(f"quantize is {self.quantize!r}: expected {names}")
        if self.model.head_dim not in _HEAD_DIMS:
            raise CheckpointError(
                f"head_dim is {self.model.head_dim}: the cuda engine needs a multiple of 8 up to 256; "
                f'load the model with engine="numpy"'
            )

    @property
    def qkv_width(self) -> int:
        return (self.model.heads + 2 * self.model.kv_heads) * self.model.head_dim

    @property
    def products(self) -> dict[str, Product]:
        model = self.model
        sizes = {
            "qkv": (self.qkv_width, model.hidden),
            "output": (model.hidden, model.heads * model.head_dim),
            "gate_up": (2 * model.intermediate, model.hidden),
            "down": (model.hidden, model.intermediate),
            "head": (model.vocab, model.hidden),
        }
        return {name: Product(name, n, k) for name, (n, k) in sizes.items()}

    @property
    def parts(self) -> int:
        """How many blocks attend to a split for a token: each has up to eight query heads of one key head."""
        return self.model.kv_heads * _up_div(self.model.query_group, min(8, 1024 // self.model.head_dim))

    @property
    def slots(self) -> int:
        """How many tokens a decode step has room for."""
        return bucket(self.rows)

    @property
    def tokens(self) -> int:
        """How many tokens can be in the layers at once."""
        return max(self.slots, self.chunk)

    @property
    def chunk(self) -> int:
        """How many tokens of prompts go through the layers together."""
        return min(CHUNK, max(16, bucket(self.rows * self.capacity)))

    def ways(self, longest: int) -> int:
        """How many blocks share the positions of each token: a power of two, at least the splits of the longest row."""
        return bucket(_up_div(longest, SPLIT))

    def prompt_ways(self, tokens: int, longest: int) -> int:
        """How many if the tokens are those of prompts: as in a step if they are few, 0 if they attend as prompts do."""
        return self.ways(longest) if tokens <= FEW else 0

    @property
    def wide_from(self) -> int:
        """How many tokens the kernels of wide.cu multiply, at least: of codes more, which are unpacked for them."""
        return _WIDE_FROM_OF_CODES if self.quantize else _WIDE_FROM

    def wide(self, tokens: int, capability: tuple[int, int]) -> bool:
        """Tell whether so many tokens are multiplied by the kernels of wide.cu; never changes a bit."""
        return tokens >= self.wide_from and capability == _WIDE_CAPABILITY

    def attention(self, tokens: int, ways: int) -> Launch:
        """Give the launch that attends; attention_step.cu and attention_prompt.cu compute the same sizes."""
        if ways:
            return Launch("attention_step", (self.parts, ways, tokens), SPLIT // _BLOCK * 32)
        dim, group = self.model.head_dim, self.model.query_group
        shares, pairs = (4, 16) if dim > 128 else (1, 128)
        warps = pairs // 16 * shares
        parts = _up_div(group, pairs)
        tile = pairs // _up_div(group, parts)
        keys, columns = up(dim, 32), _up_div(dim, 16 * shares) * shares
        stages = 1 if shares > 1 else 2
        shared = stages * _BLOCK * 2 * (keys + columns * 16 + (8 if columns % 4 else 0)) + keys * 32 * warps
        return Launch("attention_prompt", (self.model.kv_heads * parts, _up_div(tokens, tile), 1), warps * 32, shared)

    @property
    def shares(self) -> int:
        """How many blocks look through a row of logits."""
        return min(32, _up_div(self.model.vocab, _SHARE))

    def defines(self) -> tuple[str, ...]:
        """Give the macros that the kernels are compiled with."""
        model = self.model
        values = {
            "HIDDEN": model.hidden,
            "HEADS": model.heads,
            "KV_HEADS": model.kv_heads,
            "HEAD_DIM": model.head_dim,
            "INTERMEDIATE": model.intermediate,
            "VOCAB": model.vocab,
            "LAYERS": model.layers,
            "CAPACITY": self.capacity,
            "SPLIT": SPLIT,
            "LOGIT_SHARES": self.shares,
            "QK_NORM": int(model.qk_norm),
            "CODES": _CODES[self.quantize],
            "ADAPTED": int(self.adapters > 0),
            "RANK": self.lora_rank,
            "EPS": f"{float(model.rms_norm_eps)!r}f",
            "ATTENTION_SCALE": f"{_LOG2_E / math.sqrt(model.head_dim)!r}f",
        }
        return tuple(f"{name}={value}" for name, value in values.items())

    def modules(self, capability: tuple[int, int]) -> list[Module]:
        """Give all kernels but that of a whole step."""
        texts = sources(wide=capability == _WIDE_CAPABILITY, adapters=self.adapters > 0)
        return [Module(source, self.defines()) for source in texts]

    def modules_of_rows(self) -> list[Module]:
        """Give the kernels of an engine that has a model computed by others: what draws, and what is around a batch."""
        parts = ("penalties.cu", "sampling.cu", "batch.cu"), ("masking.cu",)
        return [Module(_joined("common.cu", *part), self.defines()) for part in parts]

    def state_of_rows(self) -> Plan:
        """Plan what every engine has for its rows but their cache: logits, tokens, and how they are drawn."""
        model, rows = self.model, self.rows
        return {
            "logits": Array((rows, model.vocab), "float32"),
            "kept_logits": Array((rows, model.vocab), "float32"),
            "drawn": Array((rows, 2), "int32"),  # the next token, and what is wrong with the logits it was drawn from
            "allowed": Array((_up_div(model.vocab, 32),), "uint32"),  # bits of the tokens that a mask leaves
            "sampling": Array((rows, 8), "uint32"),  # `struct Sampling` of sampling.cu
            "penalties": Array((rows, 8), "uint32"),  # `struct Penalties` of penalties.cu
            "history": Array((rows, self.capacity), "int32"),  # the tokens that penalties look at
            "counts": Array((rows, model.vocab), "uint32"),  # of each token there; zero but while a token is drawn
            "biases": Array((rows, model.vocab), "float32"),
            "stops": Array((rows, MOST_STOPS), "int32"),
            "penalised": Array((rows, model.vocab), "float32"),  # the logits that a row with penalties is drawn from
            "of_shares": Array((self.slots, self.shares), "uint64"),  # of the logits: the largest, the sum of weights
            "looked": Array((self.slots,), "int32"),  # how many shares are done
            "amounts": Array((self.slots if self.shares > 1 else 0, BINS), "uint64"),
            "progress": Array((self.slots, 3), "uint64"),  # `struct Progress` of sampling.cu
            "step": Array((2, self.slots), "int32"),  # rows and positions of a decode step
        }

    def state(self) -> Plan:
        """Plan all memory but the weights."""
        model, rows, tokens = self.model, self.rows, self.tokens
        splits = _up_div(self.capacity, SPLIT)
        heads = self.parts * _up_div(model.query_group, self.parts // model.kv_heads)
        return {
            "kv_cache": Array(
                (rows, model.layers, 2, model.kv_heads, self.capacity, model.head_dim), "bfloat16"
            ),  # keys, values
            **self.state_of_rows(),
            # ids, rows, positions; which tokens end a prompt, and of which rows
            "chunk": Array((5, self.chunk), "int32"),
            "rope": Array((self.capacity, model.head_dim), "float32"),  # half cosines, half sines
            "residual": Array((tokens, up(model.hidden, COLUMNS)), "float32"),
            "normed": Array(tiled_shape(tokens, model.hidden), "bfloat16"),  # without the root mean square
            "scales": Array((tokens,), "float32"),
            "squares": Array((tokens, -(-model.hidden // _UNIT)), "float32"),
            "qkv": Array((tokens, self.qkv_width), "float32"),
            "attended": Array(tiled_shape(tokens, model.heads * model.head_dim), "bfloat16"),
            "inner": Array(tiled_shape(tokens, model.intermediate), "bfloat16"),
            "partials": Array(
                (max(self.slots, FEW) if splits > 1 else 0, heads, splits, model.head_dim + 2), "float32"
            ),
            "arrivals": Array((max(self.slots, FEW), model.heads), "uint32"),
            "unpacked": Array((self._unpacked,), "uint8"),  # a matrix of a layer in bfloat16, and its scales
        }

    @property
    def _unpacked(self) -> int:
        if not self.quantize or self.chunk < self.wide_from:
            return 0
        products = [product for name, product in self.products.items() if name != "head"]
        return max(up(product.n, 2 * ROWS) * (2 * up(product.k, COLUMNS) + 4) for product in products)

    def weights(self) -> Plan:
        """Plan the memory of the weights."""
        model, products = self.model, self.products
        hidden = up(model.hidden, COLUMNS)
        biases = {"qkv": model.qkv_bias, "output": model.output_bias, "gate_up": model.mlp_bias, "down": model.mlp_bias}
        plan: dict[str, Array] = {}

        def put_matrix(name: str, rows: int, columns: int) -> None:
            plan[name] = Array(tiled_shape(rows, columns), "uint8" if self.quantize else "bfloat16")
            if self.quantize:  # right behind, where kernels look for them
                plan[f"{name}_scale"] = Array((up(rows, 2 * ROWS),), "float32")

        if not model.tied_embeddings:
            put_matrix("embedding", model.vocab, model.hidden)
        for layer in range(model.layers):
            plan[f"{layer}.input_norm"] = plan[f"{layer}.inner_norm"] = Array((hidden,), "float32")
            for name, biased in biases.items():
                put_matrix(f"{layer}.{name}", products[name].n, products[name].k)
                if biased:
                    plan[f"{layer}.{name}_bias"] = Array((products[name].n,), "float32")
            if model.qk_norm:
                for name in ("query_norm", "key_norm"):
                    plan[f"{layer}.{name}"] = Array((model.head_dim,), "float32")
        plan["final_norm"] = Array((hidden,), "float32")
        put_matrix("head", model.vocab, model.hidden)
        return plan

    @property
    def embedding_bytes(self) -> int:
        """How many bytes of the embedding a token reads."""
        return self.model.hidden + 4 if self.quantize else self.model.hidden * 2

    def bytes_per_step(self) -> int:
        """Count the bytes of weights that a decode step reads."""
        return sum(array.nbytes for name, array in self.weights().items() if not name.startswith("embedding"))


def drawing_digest() -> str:
    """Tell one version of what draws from another."""
    return hashlib.sha256(_joined("common.cu", *_DRAWING, "batch.cu").encode()).hexdigest()[:16]


def kernels_digest() -> str:
    """Tell one version of the kernels from another."""
    return hashlib.sha256(
        "".join([*sources(wide=True, adapters=True), persistent_source(), str(SPLIT)]).encode()
    ).hexdigest()[:16]
