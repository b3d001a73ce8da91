"""One kernel for a whole step, and one an operation: the same bits; and who asks for what there is not is told."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from emulated_device import CAN_EMULATE, EmulatedDevice

from gpu import CudaEngine, DeviceError, ModelConfig, OptionError, SelfCheckError, load_engine, unavailable_engines
from gpu.cuda.decoding import Decoding
from gpu.cuda.device import Device, Module
from gpu.cuda.shape import SPLIT

pytestmark = pytest.mark.slow
SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "a key head of its own, hands of three": {"hidden_size": 768, "num_key_value_heads": 4, "intermediate_size": 512},
    "biases, a head of its own": {"family": "qwen2", "tie_word_embeddings": False},
    "input of a product that registers do not hold": {"intermediate_size": 8704, "num_hidden_layers": 1},
    "more units of the head than of a layer": {"vocab_size": 9001, "num_hidden_layers": 1},
}


def config(family: str = "llama", **fields: Any) -> ModelConfig:
    sizes = {
        "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "vocab_size": 333, "num_hidden_layers": 2, "max_position_embeddings": 2048,
    }  # fmt: skip
    return ModelConfig.from_json(tiny_config(family, **{**sizes, **fields}))


def changed(module: Module, right: str, wrong: str) -> Module:
    return module._replace(source=module.source.replace(right, wrong))


class Blocks(EmulatedDevice):
    """So many that some have nothing to do."""

    processors = 3


def device(name: str) -> Device | None:
    if name == "emulated" and not CAN_EMULATE:
        pytest.skip("no g++ here, or no x86-64")
    if name == "cuda" and (missing := unavailable_engines().get("cuda")):
        pytest.skip(f"no engine cuda: {missing}")
    return Blocks() if name == "emulated" else None


DEVICES = pytest.mark.parametrize("where", ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])


@DEVICES
@pytest.mark.parametrize(
    ("name", "quantize"),
    [
        *((name, None) for name in SHAPES),
        ("input of a product that registers do not hold", "fp8"),
        ("more units of the head than of a layer", "int8"),
    ],
)
def test_both_ways_give_the_same_bits(name: str, quantize: str | None, where: str) -> None:
    model = config(**SHAPES[name])
    for rows in (3,) if where == "emulated" else (1, 2, 3, 8):
        given: dict[str, Any] = {"rows": rows, "capacity": 48, "quantize": quantize}
        found = [
            steps(CudaEngine(model, None, **given, decode=path, device=device(where)), rows)
            for path in ("per-op", "persistent")
        ]
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
        assert all(np.isfinite(a).all() for a in found[0])


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ here, or no x86-64")
def test_both_ways_give_the_same_bits_where_blocks_draw_all_their_units() -> None:
    class Drawing(Blocks):  # as where there are more blocks than units
        def build(self, modules: Sequence[Module], *, compiling: Callable[[], None]) -> None:
            modules = [changed(module, "constexpr int GIVEN = 7;", "constexpr int GIVEN = 0;") for module in modules]
            assert any("GIVEN = 0" in module.source for module in modules)
            super().build(modules, compiling=compiling)

    model = config(num_hidden_layers=1)
    apart = steps(CudaEngine(model, None, rows=1, capacity=16, decode="per-op", device=Blocks()), 1)
    whole = steps(CudaEngine(model, None, rows=1, capacity=16, decode="persistent", device=Drawing()), 1)
    assert all(np.array_equal(a, b) for a, b in zip(apart, whole, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_both_ways_give_the_same_bits_of_matrices_that_keep_the_ring_full(quantize: str | None) -> None:
    device("cuda")
    large = {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 4096,
    }  # fmt: skip
    found = []
    for path in ("per-op", "persistent"):
        with CudaEngine(config(**large), None, rows=8, capacity=128, decode=path, quantize=quantize) as engine:
            rows = engine.kv_cache.acquire(8)
            for row in rows:
                engine.write_prompt(row, [row + 1, 2, 3])
            engine.prefill(rows)
            for _ in range(100):
                engine.sample(rows)
                engine.decode(rows)
            found.append([engine.read_logits(row) for row in rows])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@DEVICES
def test_both_ways_attend_alike_across_splits(where: str) -> None:
    model, lengths = config(num_hidden_layers=1), (SPLIT - 2, SPLIT, 5)
    found = []
    for path in ("per-op", "persistent"):
        engine = CudaEngine(model, None, rows=3, capacity=SPLIT + 8, decode=path, device=device(where))
        found.append(steps(engine, 3, lengths))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def steps(engine: CudaEngine, rows: int, lengths: tuple[int, ...] = ()) -> list[np.ndarray]:
    """Give logits and cache after a few steps of several rows, and of some of them."""
    found: list[np.ndarray] = []
    with engine:
        used = engine.kv_cache.acquire(rows)
        for row in used:
            length = lengths[row] if lengths else 3 + 2 * row
            engine.write_prompt(row, np.random.default_rng(row).integers(0, engine.model.vocab, length).tolist())
        engine.prefill(used)
        for step in range(3):
            stepping = used[::2] if step == 1 else used
            engine.sample(stepping)
            engine.decode(stepping)
            found += [engine.read_logits(row) for row in used]
        found += [engine.export_kv(row, 0, engine.kv_cache.length(row)) for row in used]
    return found


@DEVICES
def test_without_a_word_the_faster_way_is_taken_and_told(where: str) -> None:
    with CudaEngine(config(), None, rows=2, capacity=32, device=device(where)) as engine:
        first = engine.facts()["decode path"]
        assert "measured: " in str(first)
        assert "ms a step against" in str(first)
        assert steps_of(engine) == 4


def steps_of(engine: CudaEngine) -> int:
    [row] = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [1, 2, 3])
    engine.prefill([row])
    engine.sample([row])
    engine.decode([row])
    return engine.kv_cache.length(row)


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ here, or no x86-64")
def test_a_way_that_is_not_there_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Older(EmulatedDevice):
        capability = (8, 9)

    class Newer(EmulatedDevice):
        capability = (10, 0)

    for other, found in ((Older, r"8\.9"), (Newer, r"10\.0")):
        with pytest.raises(
            DeviceError, match=rf"'persistent' cannot be had here: it needs .* 9\.0, this .* {found}; leave"
        ):
            CudaEngine(config(), None, rows=1, capacity=8, decode="persistent", device=other())
        CudaEngine(config(), None, rows=1, capacity=8, decode="per-op", device=other()).close()
    for fields, words in (
        ({"family": "qwen3"}, "the model normalises its heads"),
        ({"hidden_size": 96}, "the matrices of `qkv` have 96 columns, not a multiple of 256"),
    ):
        with pytest.raises(DeviceError, match=words):
            CudaEngine(config(**fields), None, rows=1, capacity=8, decode="persistent", device=EmulatedDevice())
        with CudaEngine(config(**fields), None, rows=1, capacity=8, device=EmulatedDevice()) as engine:
            assert words in str(engine.facts()["decode path"])
    with pytest.raises(OptionError, match="there is no decode path 'fast': expected per-op or persistent"):
        CudaEngine(config(), None, rows=1, capacity=8, decode="fast", device=EmulatedDevice())
    folder = write_checkpoint(tmp_path)
    with pytest.raises(OptionError, match="the engine numpy has no decode per-op: expected alone or together"):
        load_engine(folder, "numpy", decode="per-op")
    assert load_engine(folder, "numpy", decode=None).facts() == {}


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ here, or no x86-64")
def test_the_slower_way_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement decides: by a clock on which each way in turn takes long."""
    for slow in ("persistent", "per-op"):
        launch, now = Decoding._launch, [0.0]

        def timed(
            self: Decoding, path: str, tokens: int, ways: int, slow: str = slow, launch: Any = launch, now: Any = now
        ) -> None:
            now[0] += 2 if path == slow else 1
            launch(self, path, tokens, ways)

        with monkeypatch.context() as patched:
            patched.setattr(Decoding, "_launch", timed)
            patched.setattr("gpu.cuda.decoding.time", SimpleNamespace(perf_counter=lambda now=now: now[0]))
            with CudaEngine(config(num_hidden_layers=1), None, rows=1, capacity=32, device=EmulatedDevice()) as engine:
                assert engine._decoding.path(1, 1) != slow


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ here, or no x86-64")
def test_a_device_that_refuses_the_one_kernel_decodes_without() -> None:
    class Shared(EmulatedDevice):
        def launch(self, *launch: Any, together: bool = False, **more: Any) -> None:
            if together:
                raise RuntimeError("too many blocks in cooperative launch")
            super().launch(*launch, together=together, **more)

    with CudaEngine(config(num_hidden_layers=1), None, rows=1, capacity=32, device=Shared()) as engine:
        assert "cannot be launched here: too many blocks" in str(engine.facts()["decode path"])
        assert steps_of(engine) == 4
    with CudaEngine(config(num_hidden_layers=1), None, rows=1, capacity=3, device=EmulatedDevice()) as engine:
        assert "measured" not in str(engine.facts()["decode path"])  # there is no room for it


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ here, or no x86-64")
def test_prompts_that_get_other_bits_than_steps_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged(EmulatedDevice):
        def build(self, modules: Sequence[Module], *, compiling: Callable[[], None]) -> None:
            right = "attended_to(of[0], share)"
            assert any(right in module.source for module in modules)
            super().build(
                [changed(module, right, right.replace("share", "1.01f * share")) for module in modules],
                compiling=compiling,
            )

    monkeypatch.setattr("gpu.cuda.engine._COMPARED_FROM", 0)
    with CudaEngine(
        config(num_hidden_layers=1), None, rows=1, capacity=80, decode="per-op", device=Damaged()
    ) as engine:
        assert "prompts get other bits than steps" in str(engine.facts()["attention"])
        assert "prefill" not in engine.facts()


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ here, or no x86-64")
def test_kernels_that_give_other_bits_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged(EmulatedDevice):
        def build(self, modules: Sequence[Module], *, compiling: Callable[[], None]) -> None:
            for right, wrong in (
                ("sums.partial[0][safe][pair]", "sums.partial[1][safe][pair]"),  # of a whole step
                ("total[i] = run == 0 ? sum[i]", "total[i] = run == 0 ? 2 * sum[i]"),  # of many tokens
            ):
                modules = [changed(module, right, wrong) for module in modules]
            super().build(modules, compiling=compiling)

    monkeypatch.setattr("gpu.cuda.engine._COMPARED_FROM", 0)
    model = config(num_hidden_layers=1)
    with (
        CudaEngine(model, None, rows=1, capacity=80, decode="per-op", device=Damaged()) as damaged,
        CudaEngine(model, None, rows=1, capacity=80, decode="per-op", device=EmulatedDevice()) as sound,
        CudaEngine(model, None, rows=1, capacity=80, device=Damaged()) as both,
    ):
        assert "the kernels for many tokens gave other bits" in str(damaged.facts()["prefill"])
        assert not {"prefill", "attention"} & set(sound.facts())
        assert "one kernel for a whole step gave other bits" in str(both.facts()["decode path"])
        found = []
        for engine in (damaged, sound, both):
            [row] = engine.kv_cache.acquire(1)
            engine.write_prompt(row, [n % model.vocab for n in range(70)])
            engine.prefill([row])
            engine.sample([row])
            engine.decode([row])
            found.append(engine.read_logits(row))
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
    with pytest.raises(SelfCheckError, match="decode='persistent' gives other bits than 'per-op' on this device"):
        CudaEngine(model, None, rows=1, capacity=80, decode="persistent", device=Damaged())
