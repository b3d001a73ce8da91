"""What a device does beside the engine's own kernels: memory that is cleared, and kernels around the work of others."""

import numpy as np
import pytest
from checkpoints import tiny_config

from gpu import ModelConfig
from gpu.cuda.arena import Arena
from gpu.cuda.device import Device, Lines
from gpu.cuda.forward import step_of
from gpu.cuda.graphs import GraphCache
from gpu.cuda.shape import Shape
from gpu.cuda.staging import Staging
from gpu.cuda.watchdog import Watchdog

pytestmark = pytest.mark.slow
ROWS, ASIDE = 5, 77
SHAPE = Shape(ModelConfig.from_json(tiny_config()), ROWS, 64)


def read(device: Device, lines: Lines, dtype: str) -> np.ndarray:
    address, found = device.pinned(lines.width)
    device.copy(lines, Lines(address, lines.width))
    Watchdog(device).wait(device.record(), "test")
    return found.view(dtype).copy()


def test_memory_is_cleared_line_by_line_and_nothing_beside_it(bare: Device) -> None:
    memory = Lines(bare.allocate(1000), 1000)
    Staging(bare, Watchdog(bare)).write(memory, np.full(1000, 7, np.uint8))
    bare.clear(Lines(memory.address + 100, 50, 3, 200))
    bare.clear(Lines(memory.address + 990, 4))
    expected = np.full(1000, 7, np.uint8)
    for first, length in ((100, 50), (300, 50), (500, 50), (990, 4)):
        expected[first : first + length] = 0
    assert np.array_equal(read(bare, memory, "uint8"), expected)


def test_the_stream_is_another_one_while_a_graph_is_recorded(bare: Device) -> None:
    seen: list[int] = []
    bare.capture(lambda: seen.append(bare.stream))
    assert seen != [bare.stream]
    assert bare.stream == bare.stream != 0


@pytest.mark.parametrize("as_graph", [False, True])
def test_rows_that_decode_are_put_into_a_batch_and_taken_out_of_it(bare: Device, as_graph: bool) -> None:
    arena = Arena(bare, SHAPE.state_of_rows())
    staging, vocab = Staging(bare, Watchdog(bare)), SHAPE.model.vocab
    ids, index, computed = bare.allocate(ROWS * 4), bare.allocate(ROWS * 8), bare.allocate(ROWS * vocab * 4)
    bare.build(SHAPE.modules_of_rows(), compiling=lambda: None)
    drawn = np.array([[10 + row, 0] for row in range(ROWS)], np.int32)
    batch_logits = np.random.default_rng(0).standard_normal((ROWS, vocab)).astype(np.float32)
    staging.write(arena.lines("drawn"), drawn)
    staging.write(Lines(computed, batch_logits.nbytes), batch_logits)
    staging.write(arena.lines("step"), step_of(SHAPE, [3, 1], [9, 0]))

    def step() -> None:
        rows, positions = arena.at("step", 0), arena.at("step", 1)
        bare.launch(
            "into_batch", (1, 1, 1), 256, ROWS, SHAPE.slots, ASIDE, rows, positions, arena.at("drawn"), ids, index
        )
        bare.launch(
            "out_of_batch", (8, SHAPE.slots, 1), 256, SHAPE.slots, rows, positions, computed, arena.at("logits"),
            behind=True,
        )  # fmt: skip

    graphs = GraphCache(bare)
    for number in range(3):
        graphs.run(("step",), step) if as_graph else step()
        assert read(bare, Lines(ids, ROWS * 4), "int32").tolist() == [0, 11, 0, 13, 0]
        found = read(bare, Lines(index, ROWS * 8), "int64").tolist()
        assert found == [ASIDE, number, ASIDE, 9 + number, ASIDE]
    logits = read(bare, arena.lines("logits"), "float32").reshape(ROWS, vocab)
    for row in range(ROWS):
        assert np.array_equal(logits[row], batch_logits[row] if row in (1, 3) else np.zeros(vocab))
    assert graphs.fallbacks == 0
