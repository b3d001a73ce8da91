"""A decode step is a graph for its rows, its positions and its adapter, of all that was bound; else plain launches."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from greedy import generate, prompted
from tensorrt_stand_in import CAN_STAND_IN, CAPACITY, LAYERS, ROWS, StandIn, names_of, write_stand_in_plan

from gpu import Checkpoint, DeviceError, ModelConfig, OptionError, load_engine

Load = Callable[..., Any]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_STAND_IN, reason="no g++ on x86-64, or no TensorRT")]


def test_a_step_is_recorded_once_and_then_nothing_is_asked_of_tensorrt(load: Load, world: StandIn) -> None:
    engine = load()
    for row in (0, 1):
        prompted(engine, row, [3, 1, 4])
    world.calls.clear()
    engine.decode([0])
    assert names_of(world.calls) == ["decode.execute_async_v3"]
    assert world.calls[0][2] == (2,)  # the stream that is captured
    for rows in ([0], [0, 1], [1], [1, 0]):
        engine.sample(rows)
        engine.decode(rows)
    assert names_of(world.calls) == ["decode.execute_async_v3"]
    assert engine.facts()["graph fallbacks"] == 0
    engine.clear_cuda_graphs()
    engine.decode([0])
    assert names_of(world.calls) == ["decode.execute_async_v3"] * 2


def test_a_step_that_cannot_be_recorded_is_launched_plainly_and_told(
    load: Load, world: StandIn, checkpoint: Path
) -> None:
    def capture(work: Callable[[], None]) -> None:
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    world.device.capture = capture  # type: ignore[method-assign, assignment]
    engine = load()
    world.calls.clear()
    assert generate(engine, [0, 1]) == generate(load_engine(checkpoint, "numpy", capacity=CAPACITY), [0, 1])
    assert [call for call in world.calls if call[0] == "decode"] == [("decode", "execute_async_v3", (1,))] * 6
    assert engine.facts()["graph fallbacks"] == 12  # steps, and draws


# --- fitted -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("long"), max_position_embeddings=600)


@pytest.fixture(scope="module")
def long_plan(long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in_plan(long_checkpoint, tmp_path_factory.mktemp("plan") / "long", rows=5, capacity=600)


@pytest.fixture
def load_long(world: StandIn, long_checkpoint: Path, long_plan: Path) -> Iterator[Load]:
    """Loads a model of 600 positions, 5 rows of it, with steps that are fitted."""
    from gpu.tensorrt.engine import TensorRTEngine

    model = ModelConfig.from_folder(long_checkpoint)
    with ExitStack() as stack:

        def make(decode: str | None = "fitted") -> Any:
            opened = Checkpoint.open(long_checkpoint, model)
            engine = TensorRTEngine(
                model, opened, rows=5, capacity=600, plan=long_plan, decode=decode, device=world.device, runtime=world
            )
            return stack.enter_context(closing(engine))

        yield make


def of_which(world: StandIn) -> dict[str, tuple[int, int]]:
    """For each context of a step that was made: its rows, and the positions that it looks at."""
    shapes = {of: {} for of, _, _ in world.named("set_input_shape") if of != "prefill"}
    for of, _, (name, shape) in world.named("set_input_shape"):
        if of != "prefill":
            assert name not in shapes[of], "it was set twice"
            shapes[of][name] = shape
    for found in shapes.values():
        caches = [shape for name, shape in found.items() if name.startswith("kv_cache.")]
        assert len(caches) == 2 * LAYERS
        assert {shape[:3] for shape in caches} == {(found["input_ids"][0], 2, 768)}
    return {of: (found["input_ids"][0], found["positions"][0]) for of, found in shapes.items()}


def test_each_kind_of_step_is_bound_warmed_up_recorded_and_then_launched(load_long: Load, world: StandIn) -> None:
    engine = load_long()
    for row in range(5):
        prompted(engine, row, [3, 1, 4])
    world.calls.clear()
    engine.decode([0])
    assert names_of(world.named("create_execution_context")) == ["engine.create_execution_context"]
    made = names_of(call for call in world.calls if call[0] == "decode 2")
    shapes, addresses = made.count("decode 2.set_input_shape"), made.count("decode 2.set_tensor_address")
    assert (shapes, addresses) == (4 + 2 * LAYERS, 5 + 4 * LAYERS)
    assert made == [
        "decode 2.set_optimization_profile_async", "decode 2.set_device_memory",
        *["decode 2.set_input_shape"] * shapes, *["decode 2.set_tensor_address"] * addresses,
        "decode 2.infer_shapes", "decode 2.execute_async_v3", "decode 2.execute_async_v3",
    ]  # fmt: skip
    streams = [stream for of, _, (stream,) in world.named("execute_async_v3")]
    assert streams == [1, 2]  # the warm-up, and what is captured
    assert of_which(world) == {"decode 2": (1, 256)}

    for rows, kinds in (
        ([0], {}),
        ([1], {"decode 3": (2, 256)}),
        ([0], {}),
        ([0, 1], {}),
        ([3, 1], {"decode 4": (4, 256)}),
        ([2], {}),
        ([4], {"decode 5": (5, 256)}),
        ([0], {}),
        ([4, 0], {}),
    ):
        world.calls.clear()
        engine.decode(rows)
        assert of_which(world) == kinds
        assert not [call for call in world.calls if call[0] not in (*kinds, "engine", "config")]
        assert [of for of, _, _ in world.named("execute_async_v3")] == 2 * [*kinds]
    assert engine.graph_counts() == {"hits": 10, "captures": 4, "fallbacks": 0}
    assert engine.facts()["decode"] == "fitted; rows x positions: 1 x 256, 2 x 256, 4 x 256, 5 x 256, 5 x 600"


@pytest.mark.parametrize(
    ("length", "positions"), [(1, 256), (255, 256), (256, 512), (511, 512), (512, 600), (599, 600)]
)
def test_as_many_positions_are_looked_at_as_the_longest_row_needs(
    load_long: Load, world: StandIn, length: int, positions: int
) -> None:
    engine = load_long()
    prompted(engine, 0, [2] * length)
    prompted(engine, 1, [2])
    world.calls.clear()
    engine.decode([0, 1])
    assert of_which(world) == {"decode 2": (2, positions)}
    world.calls.clear()
    engine.decode([1])
    assert of_which(world) == ({} if positions == 256 else {"decode 3": (2, 256)})


def test_all_contexts_have_one_scratch_memory_and_the_buffers_of_the_engine(load_long: Load, world: StandIn) -> None:
    engine = load_long()
    for row in (0, 2):
        prompted(engine, row, [3, 1, 4])
        engine.decode([row])
    assert len({arguments for _, _, arguments in world.named("set_device_memory")}) == 1
    bound: dict[str, set[int]] = {}
    for of, _, (name, address) in world.named("set_tensor_address"):
        if of != "prefill":
            bound.setdefault(name, set()).add(address)
    assert len([*bound]) == 5 + 4 * LAYERS
    assert {len(addresses) for addresses in bound.values()} == {1}


def test_fitted_and_whole_steps_give_the_same_tokens(load_long: Load, long_checkpoint: Path) -> None:
    """On the stand-in, which computes a row of few positions as it does one of many; TensorRT may not."""
    found = []
    prompts = {0: [*range(90)] * 2 + [5] * 72, 2: [7, 8, 9], 3: [11] * 30}  # of 252 tokens: a step crosses 256
    with load_engine(long_checkpoint, "numpy", max_batch=5, capacity=600) as reference:  # type: ignore[attr-defined]
        for engine in (reference, load_long("whole"), load_long("fitted")):
            for row, prompt in prompts.items():
                prompted(engine, row, prompt)
            tokens = []
            for step in range(12):
                rows = [row for row in prompts if step % 3 or row != 3]
                engine.sample(rows)
                tokens.append(engine.sampled(rows))
                engine.decode(rows)
            found.append((tokens, [engine.read_logits(row) for row in prompts]))
            if engine is not reference:
                assert engine.graph_counts()["fallbacks"] == 0
    for tokens, logits in found[1:]:
        assert tokens == found[0][0]
        np.testing.assert_allclose(logits, found[0][1], atol=5e-5)
    assert str(engine.facts()["decode"]).endswith(": 4 x 256, 4 x 512, 5 x 600")


def test_fitted_steps_that_cannot_be_recorded_are_launched_plainly(load_long: Load, world: StandIn) -> None:
    expected = generate(load_long(), [0, 1])

    def capture(work: Callable[[], None]) -> None:
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    world.device.capture = capture  # type: ignore[method-assign, assignment]
    engine = load_long()
    world.calls.clear()
    assert generate(engine, [0, 1]) == expected
    steps = [call for call in world.calls if call[0] == "decode 2"]
    assert names_of(steps[-6:]) == ["decode 2.execute_async_v3"] * 6  # nothing is bound between
    assert of_which(world) == {"decode 2": (2, 256)}
    assert engine.graph_counts() == {"hits": 0, "captures": 2, "fallbacks": 12}  # steps, and draws


def test_a_context_that_is_refused_while_rows_decode_is_told_and_the_next_try_goes_on(
    load_long: Load, world: StandIn
) -> None:
    engine = load_long()
    prompted(engine, 0, [3, 1, 4])
    engine.sample([0])
    world.answers["decode 2.set_tensor_address"] = False
    with pytest.raises(DeviceError, match="refuses input_ids at that address"):
        engine.decode([0])
    assert engine.kv_cache.length(0) == 3
    engine.decode([0])
    logits = engine.read_logits(0)
    other = load_long("whole")
    prompted(other, 0, [3, 1, 4])
    other.sample([0])
    other.decode([0])
    np.testing.assert_allclose(logits, other.read_logits(0), atol=5e-5)


def test_a_graph_is_never_launched_with_other_bindings_than_it_was_recorded_with(
    load: Load, checkpoint: Path, tmp_path: Path
) -> None:
    taking = write_stand_in_plan(checkpoint, tmp_path / "adapters", rows=ROWS, capacity=CAPACITY, lora_rank=4)
    engine = load(plan=taking)
    prompted(engine, 0, [3, 1, 4])
    for _ in range(2):
        engine.decode([0])
    assert engine.graph_counts() == {"hits": 2, "captures": 1, "fallbacks": 0}
    [(step, context)] = engine._of_steps.items()
    assert step.adapter is None
    for name in ("lora_a.0.q_proj", "lora_b.1.down_proj", "logits", "present.kv_cache.0.keys"):
        assert f"'{name}'" in context.snapshot
    before = context.snapshot
    assert context.snapshot is before  # it is not made anew at every step
    aside = {buffer.name: buffer for buffer in engine.memory()}["kept_logits"]  # zeros, as no adapter is
    context.address("lora_a.0.q_proj", aside.address)
    assert context.snapshot != before
    engine.decode([0])
    assert engine.graph_counts() == {"hits": 3, "captures": 2, "fallbacks": 0}
    context.shape("lora_a.0.q_proj", *context._shapes["lora_a.0.q_proj"])  # as it was
    engine.decode([0])
    assert engine.graph_counts() == {"hits": 4, "captures": 2, "fallbacks": 0}


def test_what_a_step_computes_is_told_and_nonsense_is_refused(load: Load) -> None:
    for decode in ("whole", "fitted"):
        engine = load(decode=decode)
        assert engine.environment()["decode"] == decode
        assert engine.facts()["decode"] == f"{decode}; rows x positions: 3 x 24"
    assert load().environment()["decode"] == "whole"
    for nonsense in ("per-op", "\x1b[31m", ""):
        with pytest.raises(
            OptionError, match=r"the engine tensorrt has no decode .*: expected whole or fitted"
        ) as told:
            load(decode=nonsense)
        assert "\x1b" not in str(told.value)
