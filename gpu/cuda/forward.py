"""A forward pass as launches, one kernel an operation: what runs after what, on which memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpu.cuda.arena import Arena
from gpu.cuda.device import Launcher
from gpu.cuda.drawing import Launches
from gpu.cuda.shape import Shape

Int32Array = npt.NDArray[np.int32]

_THREADS = {
    "adapter_added": 256, "adapter_between": 256, "embed": 256, "mask": 256, "penalise": 512, "rope": 128,
    "sample": 1024, "scales": 256, "unpack_codes": 256,
}  # fmt: skip
_HEADS_OF_ROPE = 4  # of a block
_TOKENS_OF_SCALES = 8
_BLOCKS_OF_CODES = 8  # of a processor
_NOBODY = -1
_KINDS = ("qkv", "output", "gate_up", "down")  # as in products.cu
_NUMBERS_OF_ADAPTER = 8  # that a block computes between the two products


def step_of(shape: Shape, rows: Sequence[int], positions: Sequence[int]) -> Int32Array:
    """Give what `step` of the arena holds when these rows decode."""
    step = np.zeros((2, shape.slots), np.int32)
    step[0] = _NOBODY
    step[0, : len(rows)], step[1, : len(rows)] = rows, positions
    return step


def chunk_of(shape: Shape, ids: Int32Array, rows: Int32Array, positions: Int32Array, ends: Int32Array) -> Int32Array:
    """Give what `chunk` of the arena holds when these tokens go through the layers; `ends`: which end a prompt."""
    chunk = np.zeros((5, shape.chunk), np.int32)
    chunk[1], chunk[4] = _NOBODY, _NOBODY
    chunk[0, : len(ids)], chunk[1, : len(ids)], chunk[2, : len(ids)] = ids, rows, positions
    chunk[3, : len(ends)], chunk[4, : len(ends)] = ends, rows[ends]
    return chunk


def penalise(launcher: Launcher, shape: Shape, arena: Arena, tokens: int) -> None:
    """Launch what leaves the logits that each row of the step with penalties is drawn from."""
    rows, positions = arena.at("step", 0), arena.at("step", 1)
    penalties, history, penalised = arena.at("penalties"), arena.at("history"), arena.at("penalised")
    threads, grid = _THREADS["penalise"], (shape.shares, tokens, 1)
    counts, logits = arena.at("counts"), arena.at("logits")
    launcher.launch("count_seen", grid, threads, tokens, penalties, rows, positions, history, counts)
    launcher.launch("penalise", grid, threads, tokens, penalties, rows, logits, arena.at("biases"), counts, penalised)
    launcher.launch(
        "mask_tokens", grid, threads, tokens, penalties, rows, positions, history, arena.at("stops"), penalised
    )  # fmt: skip


def draw(launcher: Launcher, shape: Shape, arena: Arena, tokens: int, launches: Launches) -> None:
    """Launch what draws the next token of each row of the step."""
    for first, last in launches:
        launcher.launch(
            "sample", (shape.shares, tokens, 1), _THREADS["sample"], tokens, first, last, arena.at("logits"),
            arena.at("penalised"), arena.at("penalties"), arena.at("sampling"),
            arena.at("step", 0), arena.at("step", 1), arena.at("drawn"), arena.at("of_shares"),
            arena.at("amounts"), arena.at("progress"), arena.at("looked"),
        )  # fmt: skip


def mask(launcher: Launcher, shape: Shape, arena: Arena, row: int) -> None:
    """Launch what leaves a row the logits of the tokens that `allowed` of the arena has bits of."""
    blocks = -(-shape.model.vocab // _THREADS["mask"])
    launcher.launch("mask", (blocks, 1, 1), _THREADS["mask"], arena.at("logits", row), arena.at("allowed"))


@dataclass(slots=True)
class Forward:
    """Launches the kernels of a model on memory that was bound once.

    `wide`: whether many tokens are multiplied by kernels of their own, where the device has what these are made of.
    """

    device: Launcher
    shape: Shape
    weights: Arena
    arena: Arena
    wide: bool = True

    def prefill(self, tokens: int, ways: int) -> None:
        """Take the tokens of the chunk through all layers."""
        arena = self.arena
        self._layers(tokens, arena.at("chunk", 0), arena.at("chunk", 1), arena.at("chunk", 2), ways)

    def ends(self, tokens: int) -> None:
        """Turn the tokens of the chunk that end a prompt into the logits of their rows."""
        self._head(tokens, self.arena.at("chunk", 3), self.arena.at("chunk", 4))

    def decode(self, tokens: int, ways: int) -> None:
        """Take the token that was drawn for each row of the step through all layers, to its logits; count on."""
        arena = self.arena
        rows, positions = arena.at("step", 0), arena.at("step", 1)
        self._layers(tokens, 0, rows, positions, ways)
        self._head(tokens, 0, rows, positions=positions)

    def sample(self, tokens: int, launches: Launches) -> None:
        """Draw the next token of each row of the step."""
        draw(self.device, self.shape, self.arena, tokens, launches)

    def _layers(self, tokens: int, ids: int, rows: int, positions: int, ways: int) -> None:
        """Launch all of a forward pass but the head; without ids the tokens are those that were drawn."""
        model, arena, weights = self.shape.model, self.arena, self.weights
        x, normed, squares = arena.at("residual"), arena.at("normed"), arena.at("squares")
        qkv, attended, inner = arena.at("qkv"), arena.at("attended"), arena.at("inner")
        rope, attention = arena.at("rope"), self.shape.attention(tokens, ways)
        merging = (arena.at("partials"), arena.at("arrivals")) if ways else ()
        table = weights.optional("embedding") or weights.at("head")
        heads = -(-(model.heads + 2 * model.kv_heads) // _HEADS_OF_ROPE)

        self._launch(
            "embed", (tokens, 1, 1), tokens, table, ids, arena.at("drawn"), rows, weights.at("0.input_norm"), x, normed,
            squares,
        )  # fmt: skip
        for layer in range(model.layers):
            last = layer == model.layers - 1
            of_layer = arena.at("kv_cache", 0, layer)
            next_norm = weights.at("final_norm" if last else f"{layer + 1}.input_norm")
            inner_norm = weights.at(f"{layer}.inner_norm")
            self._product(
                "qkv", layer, tokens, normed, squares, qkv, rows=rows, positions=positions, table=rope, cache=of_layer
            )
            if model.qk_norm:
                self._launch(
                    "rope", (heads, tokens, 1), tokens, qkv, rope, weights.at(f"{layer}.query_norm"),
                    weights.at(f"{layer}.key_norm"), rows, positions, of_layer,
                )  # fmt: skip
            self.device.launch(
                attention.kernel, attention.grid, attention.threads, tokens, qkv, of_layer, rows, positions, attended,
                *merging, shared=attention.shared,
            )  # fmt: skip
            self._product("output", layer, tokens, attended, 0, x, inner_norm, normed, squares, rows=rows)
            self._product("gate_up", layer, tokens, normed, squares, inner, rows=rows)
            self._product("down", layer, tokens, inner, 0, x, next_norm, normed, squares, rows=rows)

    def _head(self, tokens: int, pick: int, rows: int, *, positions: int = 0) -> None:
        """Launch the product that turns picked tokens into the logits of their rows, and counts positions on."""
        arena = self.arena
        self._run_product(
            "head", tokens, self.weights.at("head"), 0, arena.at("normed"), arena.at("squares"), arena.at("logits"),
            pick=pick, rows=rows, positions=positions,
        )  # fmt: skip

    def _product(self, name: str, layer: int, tokens: int, *given: int, rows: int, **more: int) -> None:
        """Launch a product of a layer; see `product` in products.cu for what it is given."""
        matrix, bias = self.weights.at(f"{layer}.{name}"), self.weights.optional(f"{layer}.{name}_bias")
        if self.shape.adapters:
            bias = self._adapted(name, layer, tokens, bias, *given[:2], rows=rows)
        self._run_product(name, tokens, matrix, bias, *given, rows=rows, **more)

    def _adapted(self, name: str, layer: int, tokens: int, bias: int, given: int, squares: int, *, rows: int) -> int:
        """Launch what leaves for each token what is added to its sums of a product: see adapters.cu."""
        arena, product = self.arena, self.shape.products[name]
        of_rows, between, added = arena.at("adapters"), arena.at("between"), arena.at("added")
        numbers = {"qkv": 3, "gate_up": 2}.get(name, 1) * self.shape.lora_rank
        self._launch(
            "adapter_between", (-(-numbers // _NUMBERS_OF_ADAPTER), tokens, 1), tokens, numbers, product.k, given,
            squares, arena.at(f"{name}_a", layer), rows, of_rows, between,
        )  # fmt: skip
        self._launch(
            "adapter_added", (-(-product.n // _THREADS["adapter_added"]), tokens, 1), tokens, numbers, product.n,
            _KINDS.index(name), bias, between, arena.at(f"{name}_b", layer), rows, of_rows, added,
        )  # fmt: skip
        return added

    def _run_product(
        self, name: str, tokens: int, matrix: int, bias: int, given: int, squares: int, result: int,
        next_norm: int = 0, next_given: int = 0, next_squares: int = 0, *, pick: int = 0, rows: int = 0,
        positions: int = 0, table: int = 0, cache: int = 0,
    ) -> None:  # fmt: skip
        how = self.shape.products[name].launch(tokens, self.device.processors)
        if name != "head" and self.wide and self.shape.wide(tokens, self.device.capability):
            product = self.shape.products[name]
            how = product.launch_wide(tokens, self.device.processors)
            if self.shape.quantize:
                codes, matrix = matrix, self.arena.at("unpacked")
                grid = (_BLOCKS_OF_CODES * self.device.processors, 1, 1)
                self._launch("unpack_codes", grid, product.n, product.k, codes, matrix)
            if squares:
                scales = self.arena.at("scales")
                self._launch("scales", (-(-tokens // _TOKENS_OF_SCALES), 1, 1), tokens, squares, scales)
                squares = scales
        self.device.launch(
            how.kernel, how.grid, how.threads, tokens, matrix, bias, given, squares, result, next_norm, next_given,
            next_squares, pick, rows, positions, table, cache, shared=how.shared,
        )  # fmt: skip

    def _launch(self, kernel: str, grid: tuple[int, int, int], *parameters: int) -> None:
        self.device.launch(kernel, grid, _THREADS[kernel], *parameters)
