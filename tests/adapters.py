"""Makes random LoRA adapters as PEFT's files hold them, and the checkpoint that each comes to when it is merged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import write_safetensors

from gpu import Checkpoint, ModelConfig

ALPHA = 12.0
Tensors = dict[str, np.ndarray]


def random_adapter(model: ModelConfig, rank: int, seed: int = 0) -> Tensors:
    """Draw an adapter of all linear layers, by PEFT's names, that changes their products by a good part."""
    random = np.random.default_rng(seed)
    heads, kv_heads = model.heads * model.head_dim, model.kv_heads * model.head_dim
    linears = {
        "self_attn.q_proj": (heads, model.hidden), "self_attn.k_proj": (kv_heads, model.hidden),
        "self_attn.v_proj": (kv_heads, model.hidden), "self_attn.o_proj": (model.hidden, heads),
        "mlp.gate_proj": (model.intermediate, model.hidden), "mlp.up_proj": (model.intermediate, model.hidden),
        "mlp.down_proj": (model.hidden, model.intermediate),
    }  # fmt: skip
    tensors = {}
    for layer in range(model.layers):
        for linear, (outputs, inputs) in linears.items():
            at = f"base_model.model.model.layers.{layer}.{linear}"
            a = random.standard_normal((rank, inputs)) / np.sqrt(inputs)
            b = random.standard_normal((outputs, rank)) * 0.5 * np.sqrt(rank) / ALPHA
            tensors |= {f"{at}.lora_A.weight": a.astype(np.float32), f"{at}.lora_B.weight": b.astype(np.float32)}
    return tensors


def write_adapter(folder: Path, adapter: Tensors, dtype: str = "float32", **fields: Any) -> Path:
    """Write a folder as PEFT does; `fields` are those of adapter_config.json that are to be others, None for none."""
    folder.mkdir()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "bias": "none",
        "inference_mode": True, "lora_alpha": ALPHA, "lora_dropout": 0.05, "r": len(next(iter(adapter.values()))),
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "target_modules": sorted({name.split(".")[-3] for name in adapter}), "layers_to_transform": None,
    } | fields  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(folder / "adapter_model.safetensors", adapter, dtype)
    return folder


def as_inputs(adapter: Tensors, dtype: np.dtype | type = np.float32) -> Tensors:
    """Give what a graph takes: by the names of its inputs, the scale multiplied into B."""
    inputs = {}
    for name, values in adapter.items():
        parts = name.split(".")
        kind, layer, projection = parts[-2], parts[4], parts[6]
        scale = ALPHA / values.shape[1] if kind == "lora_B" else 1
        inputs[f"{kind.lower()}.{layer}.{projection}"] = (values * np.float32(scale)).astype(dtype)
    return inputs


def write_merged(base: Path, folder: Path, adapter: Tensors, weights: Tensors | None = None) -> Path:
    """Write the checkpoint whose weights are those of `base`, or `weights`, with the adapter merged into them."""
    model = ModelConfig.from_folder(base)
    checkpoint = Checkpoint.open(base, model)
    merged = {name: checkpoint.read(name) for name in checkpoint.entries} | (weights or {})
    for name in [name for name in adapter if ".lora_A." in name]:
        a, b = adapter[name].astype(np.float64), adapter[name.replace("lora_A", "lora_B")].astype(np.float64)
        target = name.removeprefix("base_model.model.").replace("lora_A.", "")
        merged[target] = (merged[target] + ALPHA / len(a) * b @ a).astype(np.float32)
    folder.mkdir()
    config = json.loads((base / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", merged)
    return folder
