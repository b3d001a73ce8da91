"""Prompts, chunk by chunk: many tokens by kernels that are made for many, where those give the bits of the others."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.cuda.arena import Arena
from gpu.cuda.forward import Forward, chunk_of
from gpu.cuda.graphs import GraphCache
from gpu.cuda.shape import FEW, Shape, bucket, prompt_bucket
from gpu.cuda.staging import Staging, Window


class Prefilling:
    """Feeds tokens of prompts.

    Attributes
    ----------
    faults : dict of str to str
        What a person should know of the kernels: nothing, unless something is wrong with them or the device.
    """

    def __init__(self, forward: Forward, shape: Shape, arena: Arena, staging: Staging, graphs: GraphCache) -> None:
        self._forward, self._shape, self._arena, self._staging, self._graphs = forward, shape, arena, staging, graphs
        self.faults: dict[str, str] = {}

    def feed(self, ids: Any, rows: Any, positions: Any, ends: Any) -> None:
        """Take the tokens of a chunk through all layers, and those that end a prompt to their logits."""
        tokens = prompt_bucket(len(ids))
        self._staging.write(self._arena.lines("chunk"), chunk_of(self._shape, ids, rows, positions, ends))
        ways = self._shape.prompt_ways(tokens, int(positions.max()) + 1)
        self._graphs.run(("prefill", tokens, ways), lambda: self._forward.prefill(tokens, ways))
        if len(ends):
            ended = max(16, bucket(len(ends)))
            self._graphs.run(("ends", ended), lambda: self._forward.ends(ended))

    def compare(self, window: Window) -> None:
        """Leave the products of many tokens to the kernels for few, unless both give the same bits here."""
        vocab, many = self._shape.model.vocab, prompt_bucket(self._shape.wide_from)
        if min(self._shape.chunk, self._shape.capacity) < many:
            return

        def fed(together: int) -> npt.NDArray[np.float32]:
            positions = np.arange(many, dtype=np.int32)
            for first in range(0, many, together):
                part = positions[first : first + together]
                self.feed(part % vocab, np.zeros_like(part), part, np.array([together - 1], np.int32))
            logits = np.empty(vocab, np.float32)
            window.read(self._arena.lines("logits", 0), logits, "load")
            self._graphs.clear()
            return logits

        def alike(one: npt.NDArray[np.float32], two: npt.NDArray[np.float32]) -> bool:
            return np.array_equal(one, two, equal_nan=True)

        by_few, by_many = fed(FEW), fed(many)
        if alike(by_few, by_many):
            return
        self._forward.wide = False
        plain = fed(many)
        if alike(by_many, plain):
            self._forward.wide = True
        else:
            self.faults["prefill"] = "slow: the kernels for many tokens gave other bits on this device: please tell us"
        if not alike(by_few, plain):
            self.faults["attention"] = "prompts get other bits than steps on this device: please tell us"
