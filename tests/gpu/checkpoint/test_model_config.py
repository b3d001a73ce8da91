"""config.json in both dialects, and everything in it that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_config

from gpu import CheckpointError, ModelConfig, RopeConfig


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_both_dialects_say_the_same() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32}
    new = tiny_config(rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **yarn}, dtype="bfloat16")
    old = without(new, "rope_parameters", "dtype") | {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "yarn", **yarn},
        "torch_dtype": "bfloat16",
    }
    assert ModelConfig.from_json(new) == ModelConfig.from_json(old)
    assert ModelConfig.from_json(old).rope == RopeConfig(
        "yarn", 5e5, 4.0, 32, attention_factor=pytest.approx(1.1386294)
    )


def test_silent_fields_are_what_transformers_assumes() -> None:
    silent = ("num_key_value_heads", "head_dim", "rope_parameters", "max_position_embeddings", "rms_norm_eps")
    silent += ("tie_word_embeddings", "architectures", "hidden_act", "eos_token_id", "bos_token_id")
    llama = ModelConfig.from_json(without(tiny_config(), *silent))
    assert (llama.architecture, llama.kv_heads, llama.head_dim) == ("LlamaForCausalLM", 4, 8)
    assert (llama.max_positions, llama.rms_norm_eps, llama.tied_embeddings) == (2048, 1e-6, False)
    assert llama.rope == RopeConfig()
    assert (llama.eos_ids, llama.bos_id) == ((), None)
    qwen3 = ModelConfig.from_json(without(tiny_config("qwen3"), *silent))
    assert (qwen3.head_dim, qwen3.max_positions) == (128, 32768)
    assert ModelConfig.from_json(without(tiny_config("mistral", num_attention_heads=16), *silent)).kv_heads == 8


@pytest.mark.parametrize(
    ("family", "attention_bias", "expected"),
    [
        ("llama", False, (False, False, False)),
        ("llama", True, (True, True, False)),
        ("mistral", True, (False, False, False)),
        ("qwen2", False, (True, False, False)),
        ("qwen3", False, (False, False, True)),
        ("qwen3", True, (True, True, True)),
    ],
)
def test_biases_and_norms_of_the_families(family: str, attention_bias: bool, expected: tuple[bool, ...]) -> None:
    model = ModelConfig.from_json(tiny_config(family, attention_bias=attention_bias))
    assert (model.qkv_bias, model.output_bias, model.qk_norm) == expected


def test_eos_may_be_a_list() -> None:
    assert ModelConfig.from_json(tiny_config(eos_token_id=[5, 9])).eos_ids == (5, 9)


@pytest.mark.parametrize(
    ("family", "fields", "window"),
    [
        ("mistral", {"sliding_window": 64}, 64),
        ("mistral", {}, None),
        ("llama", {"sliding_window": 64}, None),
        ("qwen2", {"sliding_window": 64}, None),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}, None),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}, 64),
        (
            "qwen3",
            {"sliding_window": 64, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
            64,
        ),
        ("qwen3", {"sliding_window": 64, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_sliding_windows_count_where_a_layer_uses_them(family: str, fields: dict[str, Any], window: int | None) -> None:
    assert ModelConfig.from_json(tiny_config(family, **fields)).sliding_window == window


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*not supported"),
        ({"architectures": "LlamaForCausalLM"}, "not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised.*gptq"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope parameter factor is None"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "rope parameter factor is 0"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta is nan"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ from layer to layer"),
        ({"rope_parameters": [1]}, "expected a JSON object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"layer_types": ["linear_attention"]}, "layer_types"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"hidden_size": -32}, "hidden_size is -32"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 1e6}, "vocab_size is 1000000.0"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"hidden_size": 33, "head_dim": None}, "33 is not a multiple of num_attention_heads 4"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"eos_token_id": ["2"]}, "eos_token_id"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_json(tiny_config(**fields))


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_fields_without_a_default_must_be_given(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not say {name}"):
        ModelConfig.from_json(without(tiny_config(), name))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    assert ModelConfig.from_folder(tmp_path).layers == 2
