"""Attention alone: one order of sums in a step and in a prompt, whatever lies behind the end of a row."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config

from gpu import ModelConfig
from gpu.cuda.arena import Arena, Array
from gpu.cuda.bfloat16 import rounded, widened
from gpu.cuda.device import Device
from gpu.cuda.shape import SPLIT, Shape
from gpu.cuda.staging import Staging, Window
from gpu.cuda.tiles import tiled_shape, untiled
from gpu.cuda.watchdog import Watchdog

pytestmark = pytest.mark.slow
LENGTHS = (1, 63, 64, 65, 511, 512, 513, 1100)
CAPACITY = 1120
HEADS = {  # of queries, of keys, numbers of each
    "four to a key": (4, 1, 64),
    "two keys": (6, 2, 16),
    "eight to a key, 128": (8, 1, 128),
    "seven to a key, 80": (7, 1, 80),
    "nine to a key": (9, 1, 24),
    "one to a key, 96": (2, 2, 96),
    "three to a key, 256": (3, 1, 256),
    "two to a key, 136": (2, 1, 136),
}


class Attending:
    """Rows of random keys and values, NaN behind their lengths, and what the kernels make of queries."""

    def __init__(
        self, device: Device, heads: int, kv_heads: int, head_dim: int, lengths: Sequence[int], capacity: int = CAPACITY
    ) -> None:
        fields = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
        model = ModelConfig.from_json(tiny_config(num_hidden_layers=1, max_position_embeddings=capacity, **fields))
        self.shape = Shape(model, len(lengths), capacity)
        self.device, self.lengths = device, lengths
        device.build(self.shape.modules(device.capability), compiling=lambda: None)
        tokens, width = max(LENGTHS), self.shape.qkv_width
        state = self.shape.state()
        self.arena = Arena(device, {
            **{name: state[name] for name in ("kv_cache", "partials", "arrivals")},
            "qkv": Array((tokens, width), "float32"),
            "rows": Array((tokens,), "int32"),
            "positions": Array((tokens,), "int32"),
            "attended": Array(tiled_shape(tokens, heads * head_dim), "bfloat16"),
        })  # fmt: skip
        self.watchdog = Watchdog(device)
        self.staging = Staging(device, self.watchdog)
        self.window = Window(device, self.watchdog, nullcontext)
        random = np.random.default_rng(head_dim)
        self.cache = rounded(random.standard_normal((len(lengths), 2, kv_heads, capacity, head_dim), np.float32))
        for row, length in enumerate(lengths):
            self.cache[row, :, :, length:] = 0xFFFF  # NaN
        self.staging.write(self.arena.lines("kv_cache"), self.cache)
        poison = np.full(-(-self.arena.lines("partials").width // 4), np.nan, np.float32)
        self.staging.write(self.arena.lines("partials"), poison)
        self.queries = random.standard_normal((len(lengths), capacity, heads, head_dim), np.float32)

    def attend(self, rows: Sequence[int], positions: Sequence[int], *, prompt: bool) -> np.ndarray:
        """Give what tokens of these rows at these positions see, as bits: [tokens, heads, head_dim]."""
        count, arena, model = len(rows), self.arena, self.shape.model
        qkv = np.full((count, self.shape.qkv_width), np.nan, np.float32)
        for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
            if row >= 0:
                qkv[index, : model.heads * model.head_dim] = self.queries[row, position].reshape(-1)
        values: dict[str, Any] = {
            "qkv": qkv,
            "rows": np.array(rows, np.int32),
            "positions": np.array(positions, np.int32),
        }
        for name, array in values.items():
            lines = arena.lines(name)
            self.staging.write(lines._replace(width=array.nbytes), array)
        width = model.heads * model.head_dim
        found = np.full(tiled_shape(count, width), 0xFFFF, np.uint16)
        attended = arena.lines("attended")._replace(width=found.nbytes)
        self.staging.write(attended, found)
        launch = self.shape.attention(count, 0 if prompt else self.shape.ways(max(positions) + 1))
        merging = () if prompt else (arena.at("partials"), arena.at("arrivals"))
        self.device.launch(
            launch.kernel, launch.grid, launch.threads, count, arena.at("qkv"), arena.at("kv_cache"), arena.at("rows"),
            arena.at("positions"), arena.at("attended"), *merging, shared=launch.shared,
        )  # fmt: skip
        self.window.read(attended, found, "a test")
        return (untiled(found, count, width).view(np.uint32) >> 16).reshape(count, model.heads, model.head_dim)

    def exact(self, row: int, position: int) -> np.ndarray:
        """Give the same in float64; queries and keys as the kernels have them."""
        model = self.shape.model
        queries = widened(rounded(self.queries[row, position])).astype(np.float64)
        keys, values = widened(self.cache[row, :, :, : position + 1]).astype(np.float64)
        of_head = np.arange(model.heads) // model.query_group
        scores = np.einsum("hd,hpd->hp", queries, keys[of_head])
        weights = np.exp2(scores - scores.max(axis=1, keepdims=True))
        return np.einsum("hp,hpd->hd", weights / weights.sum(axis=1, keepdims=True), values[of_head])


@pytest.mark.parametrize("name", HEADS)
def test_a_token_sees_the_same_to_the_bit_in_a_step_and_in_a_prompt(bare: Device, name: str) -> None:
    attending = Attending(bare, *HEADS[name], lengths=LENGTHS)
    rows, ends = list(range(len(LENGTHS))), [length - 1 for length in LENGTHS]
    together = attending.attend(rows, ends, prompt=False)
    for row, end in zip(rows, ends, strict=True):
        exact = attending.exact(row, end)
        assert np.linalg.norm(widened(together[row].astype(np.uint16)) - exact) < 4e-3 * np.linalg.norm(exact)
        assert np.array_equal(attending.attend([row], [end], prompt=False)[0], together[row]), "alone"
    assert np.array_equal(attending.attend([*rows[::-1], -1], [*ends[::-1], 0], prompt=False)[-2::-1], together)
    assert np.array_equal(attending.attend([*rows, -1], [*ends, 0], prompt=True)[:-1], together), "in company"
    for row, first in ((7, 1040), (6, 500), (5, 448)):  # the last pieces of prompts, over the ends of blocks and splits
        positions = range(first, LENGTHS[row])
        piece = attending.attend([row] * len(positions), positions, prompt=True)
        assert np.array_equal(piece[-1], together[row]), "in a piece"
        for start in range(0, len(positions), 7):
            some = positions[start : start + 7]
            as_steps = attending.attend([row] * len(some), some, prompt=False)
            assert np.array_equal(as_steps, piece[start : start + 7])


def test_a_whole_prompt_is_that_of_float64(bare: Device) -> None:
    attending = Attending(bare, 4, 2, 32, lengths=(600,))
    found = attending.attend([0] * 600, range(600), prompt=True)
    for position in range(600):
        exact = attending.exact(0, position)
        assert np.linalg.norm(widened(found[position]) - exact) < 4e-3 * np.linalg.norm(exact)


def test_the_states_of_many_splits_are_merged_alike(bare: Device) -> None:
    lengths = 8 * SPLIT, 9 * SPLIT + 1, 24 * SPLIT, 25 * SPLIT + 65  # the states of 8 are on their way at once
    attending = Attending(bare, 2, 1, 16, lengths, capacity=26 * SPLIT)
    rows, ends = list(range(len(lengths))), [length - 1 for length in lengths]
    together = attending.attend(rows, ends, prompt=False)
    assert np.array_equal(attending.attend(rows, ends, prompt=True), together)
    for row, end in zip(rows, ends, strict=True):
        exact = attending.exact(row, end)
        assert np.linalg.norm(widened(together[row].astype(np.uint16)) - exact) < 4e-3 * np.linalg.norm(exact)
