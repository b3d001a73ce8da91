"""Writes tiny checkpoints in Hugging Face format with random weights, without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file

from gpu import ModelConfig, expected_tensors

FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def tiny_config(family: str = "llama", **overrides: Any) -> dict[str, Any]:
    """Give the config.json of a tiny model; an override of None removes the field."""
    architecture, model_type = FAMILIES[family]
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 97,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return {name: value for name, value in (values | overrides).items() if value is not None}


def random_tensors(model: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw float32 weights of a size that makes logits differ clearly: norms near 1, matrices of unit gain."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(model).items():
        values = generator.standard_normal(shape)
        if "norm" in name:
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values *= 0.1
        elif "embed" not in name:
            values /= np.sqrt(shape[1])
        tensors[name] = values.astype(np.float32)
    return tensors


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Give the bytes of float32 values in a storage dtype, bfloat16 as rounded upper halves."""
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return values.astype(dtype)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """Write one safetensors file."""
    arrays = {name: np.ascontiguousarray(stored(values, dtype)) for name, values in tensors.items()}
    specs = {
        name: TensorSpec(dtype=dtype, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in arrays.items()
    }
    serialize_file(specs, str(path), metadata={"format": "pt"})


def write_checkpoint(
    folder: Path, family: str = "llama", *, dtype: str = "float32", shards: int = 1, seed: int = 0, **overrides: Any
) -> Path:
    """Write a checkpoint folder: config.json and the weights, in `shards` files.

    `overrides` are fields of config.json, see `tiny_config`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, dtype=dtype, **overrides)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(ModelConfig.from_json(config), seed)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    weight_map = {}
    names = list(tensors)
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
