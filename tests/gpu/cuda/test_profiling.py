"""What the engine measures of itself: every kernel and phase is told, bytes are the model's, and nothing stays."""

from typing import Any

import pytest
from checkpoints import tiny_config
from emulated_device import CAN_EMULATE, EmulatedDevice

from gpu import CapacityError, CudaEngine, DeviceProfile, ModelConfig, NoFreeRows, unavailable_engines
from gpu.cuda import profiling
from gpu.cuda.shape import Shape
from gpu.cuda.traffic import OPERATIONS, operation, traffic
from phases.cli.profile import print_device

MISSING = unavailable_engines().get("cuda")
needs_emulation = pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
WHOLE_STEP = {  # the least that one kernel can do in one
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "vocab_size": 40, "num_hidden_layers": 2,
}  # fmt: skip


def config(family: str = "llama", **fields: Any) -> ModelConfig:
    return ModelConfig.from_json(tiny_config(family, **fields))


def tokens(engine: CudaEngine) -> tuple[int, ...]:
    """Generate a few, greedily."""
    [row] = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [1, 2, 3])
    engine.set_sampling(row, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
    engine.prefill([row])
    found = []
    for _ in range(4):
        engine.sample([row])
        engine.decode([row])
        found += engine.sampled([row])
    engine.kv_cache.release([row])
    return tuple(found)


def check(engine: CudaEngine, *, rows: int, context: int) -> DeviceProfile:
    """Profile an engine, and see that all is told and nothing changed."""
    before, free = tokens(engine), engine.kv_cache.free
    measured = engine.profile(rows=rows, context=context)
    assert engine.kv_cache.free == free
    assert tokens(engine) == before
    assert (measured.rows, measured.context) == (rows, context)
    assert measured.read_bandwidth > 0
    layers = engine.model.layers
    for found in measured.passes:
        assert found.time_ns > 0
        operations = {operation(work.name) for work in found.works}
        assert operations - {"scales"} == {
            name for name in OPERATIONS if name not in ("sample", "scales") and (name != "rope" or engine.model.qk_norm)
        }
        for work in found.works:
            assert work.launches == {"embed": 1, "head": 1, "scales": 2 * layers}.get(str(operation(work.name)), layers)
            assert 0 <= work.time_ns < 1e12  # a phase that no clock was looked at in would have an endless time
            assert work.apart_ns is None or work.apart_ns > 0
            assert work.bytes
    names = [part.name.partition(",")[0] for part in measured.parts]
    for name in ("context update", "binding", "engine", "sampling", "cache update"):
        assert name in names
    assert all(part.graph_ns != 0 for part in measured.parts if part.name.startswith(("engine", "sampling")))
    numbers = {number.name: number.value for number in measured.key_numbers}
    for name in ("kernel launch", "graph launch", "synchronise", "host to device, a MB", "attention", "memory read"):
        assert numbers[name] > 0
    return measured


@needs_emulation
@pytest.mark.slow
@pytest.mark.parametrize(("family", "fields"), [("llama", WHOLE_STEP), ("qwen3", {"head_dim": 16})])
def test_every_kernel_and_every_phase_is_measured(
    family: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("STEPS", "_ROUNDS", "_TOGETHER"):  # an emulated device is slow, and its times mean nothing
        monkeypatch.setattr(profiling, name, 1)
    monkeypatch.setenv("COLUMNS", "200")
    with CudaEngine(config(family, **fields), None, rows=2, capacity=64, device=EmulatedDevice()) as engine:
        measured = check(engine, rows=2, context=40)
    one_kernel = ["decode of 2 rows at 40 tokens, persistent"] if family == "llama" else []
    assert [found.name for found in measured.passes] == [
        "decode of 2 rows at 40 tokens, per-op", *one_kernel, "prefill of 40 tokens"
    ]  # fmt: skip
    print_device(measured)
    printed = capsys.readouterr().out
    for words in ("on emulated; rows: 2", "engine, per-op", "gate_up_8", "GB/s", "in one graph", "synchronise"):
        assert words in printed


@pytest.mark.gpu
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_kernels_of_a_device_take_about_as_long_as_the_step_that_they_make() -> None:
    fields = {**WHOLE_STEP, "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 32_000}
    with CudaEngine(config(**fields), None, rows=2, capacity=300) as engine:
        for found in check(engine, rows=2, context=200).passes:
            assert 0.5 < sum(work.time_ns for work in found.works) / found.time_ns < 2


@needs_emulation
def test_what_cannot_be_measured_is_refused() -> None:
    with CudaEngine(config(), None, rows=2, capacity=32, device=EmulatedDevice()) as engine:
        for context in (0, 25):
            with pytest.raises(CapacityError, match=f"steps at {context} tokens were to be measured: expected 1 to 24"):
                engine.profile(context=context)
        with pytest.raises(NoFreeRows):
            engine.profile(rows=3, context=8)
        assert engine.kv_cache.free == 2


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {"hidden_size": 37}),
        ("qwen3", {"head_dim": 16, "num_hidden_layers": 3}),
    ],
)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_step_reads_all_weights_once_and_the_cache_that_is_used(
    family: str, fields: dict[str, Any], quantize: str | None
) -> None:
    model = config(family, **fields)
    shape = Shape(model, rows=2, capacity=16, quantize=quantize)
    moved = traffic(shape, tokens=2, attended=11, ended=2)
    launches = {name: 1 if name in ("embed", "head") else model.layers for name in moved if name != "sample"}
    weights = sum(moved[name].weights * count for name, count in launches.items())
    assert weights == shape.bytes_per_step()
    assert moved["attention"].cache * model.layers == 11 * model.kv_numbers * 2
    written = sum(moved[name].cache for name in ("qkv", "rope") if name in moved)
    assert written * model.layers == 2 * model.kv_numbers * 2
