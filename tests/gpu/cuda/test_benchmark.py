"""The benchmark of the CUDA engine measures what it says, seen on a model so small that the emulated device runs it."""

import runpy
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from emulated_device import CAN_EMULATE, EmulatedDevice

pytest.importorskip("cuda.core")

from gpu import CudaEngine, ModelConfig

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_decode.py"
TINY = {
    "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 997, "tie_word_embeddings": True,
}  # fmt: skip
SHORT = {
    "PROMPT": 4, "NEW": 3, "LONG_PROMPT": 8, "CONTEXTS": (4, 8, 16), "STEPS": 1, "ROUNDS": 1, "BATCHES": (1, 2),
    "LONG_BATCHES": (1, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
def test_every_part_gives_figures(
    benchmark: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = benchmark["model_config"].__globals__
    for name, value in (SHORT | {"SHAPES": {"tiny": TINY}}).items():
        monkeypatch.setitem(inside, name, value)
    rates = benchmark["Rates"]("a card", read=1e12, matrix=1e14)
    figures = []
    with CudaEngine(benchmark["model_config"]("tiny"), None, rows=2, capacity=32, device=EmulatedDevice()) as engine:
        for measure in benchmark["MEASURES"].values():
            figures += list(measure(engine, "tiny", rates))
        assert engine.kv_cache.free == 2
    found = {figure.what: figure.value for figure in figures}
    for what in (
        "decode, batch 1 (per-op)",
        "a token, the whole machine",
        "first token of 4 tokens",
        "prefill, 8 tokens",
    ):
        assert found[what] > 0
    assert 0 < found["share of read bandwidth"] < 1
    assert "the device rests between two steps, median" in found
    assert not list(tmp_path.iterdir())
    benchmark["show"](figures, rates)
    assert "what the context costs, batch 2" in capsys.readouterr().out


@pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
def test_the_speed_of_memory_is_measured_on_a_bare_device(benchmark: dict[str, Any]) -> None:
    with closing(EmulatedDevice()) as device:
        assert benchmark["read_bandwidth"](device, 1 << 16) > 0


def test_a_figure_is_judged_by_its_target(benchmark: dict[str, Any]) -> None:
    figure = benchmark["Figure"]
    assert figure("1B", "a token", 0.89, "ms", 0.90).reached is True
    assert figure("1B", "a token", 0.91, "ms", 0.90).reached is False
    assert figure("1B", "share", 0.91, "%", 0.92, True).reached is False
    assert figure("1B", "share", 0.93, "%", 0.92, True).cells()[2:5] == ("93.0%", "≥ 92.0%", "1.01")
    assert figure("1B", "a token", 0.91).reached is None


def test_the_work_of_a_prefill_is_counted_token_by_token(benchmark: dict[str, Any]) -> None:
    model = ModelConfig.from_json(
        TINY | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "max_position_embeddings": 64}
    )
    qkv, output, inner = 32 * (2 + 1 + 1) * 16, 2 * 16 * 32, 3 * 32 * 64
    expected = 2 * 997 * 32
    for position in range(10):
        attention = 2 * 2 * 16 * (position + 1)  # scores and values of all tokens so far
        expected += 3 * 2 * (qkv + output + inner + attention)
    assert benchmark["prefill_operations"](model, 10) == expected
