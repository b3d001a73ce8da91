"""Weights of 8 bits: logits are those of the rounded weights, and nothing but what is read changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_tensors, tiny_config, write_checkpoint, write_safetensors
from codes import KINDS, quantised
from emulated_device import CAN_EMULATE, EmulatedDevice

from gpu import Checkpoint, CudaEngine, Engine, LogitsError, ModelConfig, OptionError, load_engine
from gpu.cuda.shape import Shape

pytestmark = pytest.mark.slow
needs_emulation = pytest.mark.skipif(not CAN_EMULATE, reason="no g++ on x86-64")
KIND = pytest.mark.parametrize("kind", KINDS)
Load = Callable[..., CudaEngine]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "odd sizes": ("llama", {"hidden_size": 37, "intermediate_size": 41, "vocab_size": 203, "head_dim": 24}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}


def logits_of(engine: Engine) -> np.ndarray:
    """Feed a prompt, then two tokens; all logits."""
    [row] = rows = engine.kv_cache.acquire(1)
    engine.write_prompt(row, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4])
    engine.prefill(rows)
    found = [engine.read_logits(row)]
    for token in (5, 80):
        engine.write_token(row, token)
        engine.decode(rows)
        found.append(engine.read_logits(row))
    return np.stack(found)


@KIND
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_rounded_weights(load: Load, tmp_path: Path, name: str, kind: str) -> None:
    family, fields = CASES[name]
    config = tiny_config(family, **fields)
    tensors = random_tensors(ModelConfig.from_json(config))
    rounded = dict(tensors)
    for key, matrix in tensors.items():
        if matrix.ndim == 2:
            codes, scale = quantised(matrix, kind)
            rounded[key] = codes * scale[:, None]
    for folder, values in (("plain", tensors), ("rounded", rounded)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        write_safetensors(tmp_path / folder / "model.safetensors", values)
    found = logits_of(load(tmp_path / "plain", max_batch=1, capacity=48, quantize=kind))
    exact, unrounded = (logits_of(load_engine(tmp_path / folder, "numpy")) for folder in ("rounded", "plain"))
    error, other = (np.linalg.norm(found - logits) / np.linalg.norm(logits) for logits in (exact, unrounded))
    print(f"relative error {error:.2e}, of the weights as they were {other:.2e}")
    assert error < 0.02  # activations are bfloat16
    assert error < other / 2


class NotingDevice(EmulatedDevice):
    """Knows which kernels ran."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()

    def _run(self, kernel: str, *launch: Any) -> None:
        self.kernels.add(kernel)
        super()._run(kernel, *launch)


@needs_emulation
@KIND
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"hidden_size": 96, "intermediate_size": 2048, "mlp_bias": True}),  # hands of four tiles
        ("qwen3", {"hidden_size": 360, "intermediate_size": 83}),  # of one, runs of unequal length
    ],
)
def test_bits_are_those_of_a_device_without_warpgroup_products(
    tmp_path: Path, family: str, fields: dict[str, Any], kind: str
) -> None:
    folder = write_checkpoint(tmp_path, family, num_hidden_layers=1, **fields)
    model = ModelConfig.from_folder(folder)
    tokens = np.random.default_rng(0).integers(0, 97, 140).tolist()
    found = []
    for capability in ((8, 0), (9, 0)):
        device = NotingDevice()
        device.capability = capability
        checkpoint = Checkpoint.open(folder, model)
        with CudaEngine(model, checkpoint, rows=1, capacity=140, quantize=kind, device=device) as engine:
            [row] = rows = engine.kv_cache.acquire(1)
            engine.write_prompt(row, tokens)
            engine.prefill(rows)
            found.append((engine.read_logits(row).tobytes(), engine.export_kv(row, 0, 140).tobytes()))
            assert ("unpack_codes" in device.kernels) == (capability == (9, 0))
    assert found[0] == found[1]


@KIND
def test_weights_that_are_none_make_logits_that_are_none(load: Load, tmp_path: Path, kind: str) -> None:
    """As they do in bfloat16."""
    tensors = random_tensors(ModelConfig.from_json(tiny_config()))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    for wrong in (np.nan, np.inf):
        for quantize in (None, kind):
            tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = wrong
            write_safetensors(tmp_path / "model.safetensors", tensors)
            engine = load(tmp_path, max_batch=1, capacity=16, quantize=quantize)
            [row] = rows = engine.kv_cache.acquire(1)
            engine.write_prompt(row, [1, 2, 3])
            engine.prefill(rows)
            engine.sample(rows)
            with pytest.raises(LogitsError, match="NaN"):
                engine.sampled(rows)


@needs_emulation
def test_what_weights_are_rounded_to_is_told_and_counted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    model = ModelConfig.from_folder(folder)
    found = {}
    for quantize in (None, *KINDS):
        device = EmulatedDevice()
        checkpoint = Checkpoint.open(folder, model)
        with CudaEngine(model, checkpoint, rows=1, capacity=16, quantize=quantize, device=device) as engine:
            assert engine.environment()["quantize"] == quantize
            assert engine.environment()["dtype"] == "bfloat16"
            assert engine.facts().get("weights") == quantize
            rows = engine.kv_cache.acquire(1)
            found[quantize] = engine.bytes_per_token(rows)
    matrices = sum(product.n * -(-product.k // 32) * 32 for name, product in Shape(model, 1, 16).products.items())
    assert matrices < found[None] - found["int8"] < 2 * matrices + 32
    assert found["int8"] == found["fp8"]
    with pytest.raises(OptionError, match="quantize is 'int4': expected int8 or fp8"):
        CudaEngine(model, None, rows=1, capacity=16, quantize="int4", device=EmulatedDevice())


def test_room_to_unpack_is_kept_only_where_that_is_done() -> None:
    model = ModelConfig.from_json(tiny_config(intermediate_size=100, max_position_embeddings=512))
    for quantize, capacity, expected in ((None, 512, 0), ("int8", 128, 0), ("int8", 129, 208 * (64 + 4))):
        assert Shape(model, 1, capacity, quantize).state()["unpacked"].nbytes == expected
