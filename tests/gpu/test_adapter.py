"""PEFT's folders are read as PEFT reads them, and what is no LoRA adapter of the model is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import ALPHA, random_adapter, write_adapter
from checkpoints import FAMILIES, write_checkpoint, write_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu import Adapter, AdapterError, CheckpointError, ModelConfig, load_engine

MODULE = "model.layers.1.self_attn.q_proj"
A, B = (f"base_model.model.{MODULE}.lora_{matrix}.weight" for matrix in "AB")


@pytest.fixture
def model(checkpoint: Path) -> ModelConfig:
    return ModelConfig.from_folder(checkpoint)


def read(folder: Path, model: ModelConfig, **fields: Any) -> Adapter:
    return Adapter.read(write_adapter(folder, random_adapter(model, 4), **fields), model)


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_matrices_come_as_they_are_stored_with_the_scale_in_b(tmp_path: Path, model: ModelConfig, dtype: str) -> None:
    tensors = random_adapter(model, 4)
    adapter = Adapter.read(write_adapter(tmp_path / "adapter", tensors, dtype), model)
    assert adapter.rank == 4
    assert len(adapter.matrices) == 7 * model.layers
    a, b = adapter.matrices[MODULE]
    tolerance = {"float32": 1e-7, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(a, tensors[A], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(b, tensors[B] * ALPHA / 4, rtol=tolerance, atol=tolerance)
    assert adapter.nbytes == sum(values.nbytes for values in tensors.values())


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 8}, 2),
        ({"use_rslora": True, "lora_alpha": 8}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 20}}, 5),
        ({"alpha_pattern": {"model.layers.1.self_attn.q_proj": 20, "q_proj": 40}}, 5),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 20}}, ALPHA / 4),
        ({"alpha_pattern": {"layers.(1|2).self_attn.q_proj": 20}, "use_rslora": True}, 20 / math.sqrt(4)),
        ({"alpha_pattern": {"^model.layers.*.q_proj": 20}}, 5),
        ({"alpha_pattern": {"proj": 20}}, ALPHA / 4),
        ({"r": 9, "rank_pattern": {"proj_is_none": 3, ".*_proj": 4}}, ALPHA / 4),
    ],
)
def test_the_scale_is_that_of_the_configuration(
    tmp_path: Path, model: ModelConfig, fields: dict[str, Any], scale: float
) -> None:
    tensors = random_adapter(model, 4)
    adapter = Adapter.read(write_adapter(tmp_path / "adapter", tensors, **fields), model)
    np.testing.assert_allclose(adapter.matrices[MODULE][1], tensors[B] * scale, rtol=1e-6)


def test_some_layers_and_some_modules_of_several_ranks(tmp_path: Path, model: ModelConfig) -> None:
    both = {4: random_adapter(model, 4), 2: random_adapter(model, 2)}
    tensors = {
        name: both[2 if "v_proj" in name else 4][name]
        for name in both[4]
        if ".layers.1." in name and ("q_proj" in name or "v_proj" in name)
    }
    folder = write_adapter(tmp_path / "adapter", tensors, r=4, rank_pattern={"v_proj": 2}, layers_to_transform=[1])
    adapter = Adapter.read(folder, model)
    assert {name: a.shape[0] for name, (a, _) in adapter.matrices.items()} == {
        "model.layers.1.self_attn.q_proj": 4,
        "model.layers.1.self_attn.v_proj": 2,
    }
    assert adapter.rank == 4
    as_regex = write_adapter(tmp_path / "regex", tensors, r=4, rank_pattern={"v_proj": 2}, target_modules=r".*\.1\..*")
    assert Adapter.read(as_regex, model).matrices.keys() == adapter.matrices.keys()


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path, model: ModelConfig) -> None:
    one, same = read(tmp_path / "one", model), read(tmp_path / "same", model)
    other = read(tmp_path / "other", model, lora_alpha=ALPHA + 1)
    assert one.fingerprint == same.fingerprint != other.fingerprint


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected LORA"),
        ({"peft_type": None}, "peft_type is None, expected LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', expected CAUSAL_LM"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"use_dora": True}, "it asks for use_dora .DoRA., which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "it asks for modules_to_save .whole modules., which is not supported"),
        ({"fan_in_fan_out": True}, "it asks for fan_in_fan_out"),
        ({"lora_bias": True}, "it asks for lora_bias, which is not supported"),
        ({"trainable_token_indices": [1]}, "it asks for trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "it asks for layer_replication"),
        ({"of_the_future": {"a": 1}}, "it asks for of_the_future"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changed the base model's weights"),
        ({"r": 0}, "r is 0, expected a number"),
        ({"r": 4.0}, "r is 4.0, expected a number"),
        ({"r": True}, "r is True, expected a number"),
        ({"r": 65, "target_modules": "x"}, "has rank 65, at most 64 was asked for: load with max_lora_rank=65"),
        ({"r": 3}, "expected .3, 32.: is it an adapter of another model"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is a list, expected a JSON object"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern of q_proj is -1"),
        ({"use_rslora": "false"}, "use_rslora is 'false', expected true or false"),
        ({"exclude_modules": 5}, "exclude_modules is 5, expected a list of names"),
        ({"alpha_pattern": {"(a+)+": 1}}, "cannot be matched: it holds a quantifier, or too many alternatives"),
        ({"alpha_pattern": {".*a.*": 1}}, "cannot be matched: it holds a quantifier, or too many alternatives"),
        ({"alpha_pattern": {"(.|.)" * 31 + "x": 1}}, "it holds a quantifier, or too many alternatives"),
        ({"alpha_pattern": {f"({number}|b)": 1 for number in range(17)}}, "more than 16 keys that are no plain names"),
        ({"rank_pattern": {"(q_proj": 4}}, "cannot be matched: missing"),
        ({"target_modules": None}, "target_modules is None, expected a list of names"),
        ({"target_modules": ["q_proj", "lm_head"]}, "it adapts lm_head, which the model has not"),
        ({"target_modules": ["qkv_proj"]}, "it adapts qkv_proj, which the model has not"),
        ({"target_modules": ["q_proj"]}, "unexpected: the matrices of model.layers.0.self_attn.k_proj"),
        ({"layers_to_transform": [0]}, "unexpected: the matrices of model.layers.1.mlp.down_proj"),
        ({"layers_to_transform": [0, 1, 2]}, "names layer 2, which the model has not"),
        ({"layers_to_transform": [True]}, "layers_to_transform holds True"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
    ],
)
def test_a_configuration_that_asks_for_more_is_refused(
    tmp_path: Path, model: ModelConfig, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdapterError, match=words) as refused:
        read(tmp_path / "adapter", model, **fields)
    assert str(tmp_path / "adapter") in str(refused.value)
    assert isinstance(refused.value, CheckpointError)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({A: None}, "missing: one of the two matrices of model.layers.1.self_attn.q_proj"),
        ({A: None, B: None}, "missing: the matrices of model.layers.1.self_attn.q_proj"),
        ({A: np.ones((4, 31))}, r"lora_A of .* is \[4, 31\], expected \[4, 32\]"),
        ({B: np.ones((31, 4))}, r"lora_B of .* is \[31, 4\], expected \[32, 4\]"),
        ({A: np.ones(4 * 32)}, r"lora_A of .* is \[128\], expected \[4, 32\]"),
        ({A: np.full((4, 32), np.nan)}, "hold NaN or infinities"),
        ({B: np.full((32, 4), 3e38)}, "hold NaN or infinities"),
        ({"base_model.model.lm_head.weight": np.ones((2, 2))}, "holds a tensor base_model.model.lm_head.weight"),
        ({f"{A}.more": np.ones((2, 2))}, "which is no matrix of a LoRA adapter"),
        ({A.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(4)}, "which is no matrix of a LoRA adapter"),
        ({A.replace("layers.1", "layers.7"): np.ones((4, 32))}, "it adapts model.layers.7.self_attn.q_proj, which"),
    ],
)
def test_tensors_of_another_model_are_refused(
    tmp_path: Path, model: ModelConfig, changed: dict[str, Any], words: str
) -> None:
    tensors = random_adapter(model, 4) | {name: value for name, value in changed.items() if value is not None}
    tensors = {
        name: np.asarray(value, np.float32) for name, value in tensors.items() if changed.get(name, 0) is not None
    }
    folder = write_adapter(tmp_path / "adapter", random_adapter(model, 4))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(AdapterError, match=words):
        Adapter.read(folder, model)


def test_files_that_are_not_there_or_are_damaged_are_refused(tmp_path: Path, model: ModelConfig) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(AdapterError, match="there is no such folder"):
        Adapter.read(folder, model)
    write_adapter(folder, random_adapter(model, 4))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(AdapterError, match="over another tensor or outside the file"):
        Adapter.read(folder, model)
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match="it holds pickled ones, which are never read"):
        Adapter.read(folder, model)
    weights.write_bytes(whole)
    for text in ("[]", "{", json.dumps({"r": "x" * (2 << 20)})):
        config.write_text(text)
        with pytest.raises(AdapterError, match=r"adapter_config\.json"):
            Adapter.read(folder, model)
    config.unlink()
    with pytest.raises(AdapterError, match=r"it has no adapter_config\.json"):
        Adapter.read(folder, model)


@pytest.mark.parametrize("name", ["adapters", "max_lora_rank"])
def test_room_for_no_adapters_is_refused(checkpoint: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        load_engine(checkpoint, "numpy", **{name: 0})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "bias",
    "layers_to_transform", "layers_pattern", "peft_type", "task_type", "init_lora_weights", "use_dora", "anything",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_any_configuration_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, model: ModelConfig, changed: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("odd") / "adapter"
    write_adapter(folder, random_adapter(model, 4))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changed))
    try:
        adapter = Adapter.read(folder, model)
    except AdapterError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(np.isfinite(a).all() and np.isfinite(b).all() for a, b in adapter.matrices.values())


# --- PEFT itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"r": 6, "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "some"],
)
def test_logits_are_those_of_weights_that_peft_merged(tmp_path: Path, family: str, fields: dict[str, Any]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", reason="PEFT is the oracle: pip install phasewalk[parity]")
    base = write_checkpoint(tmp_path / "base", family)
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": every, "task_type": "CAUSAL_LM"} | fields)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, values in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(values, std=0.3)
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = wrapped.merge_and_unload().eval()
    tokens = [5, 9, 2, 77, 31, 8, 8, 1]
    with torch.inference_mode():
        expected = merged(torch.tensor([tokens])).logits[0, -1].numpy()
    with load_engine(base, "numpy", capacity=16, adapters=1) as engine:
        engine.load_adapter("peft", Adapter.read(tmp_path / "adapter", engine.model))
        [row] = engine.kv_cache.acquire(1)
        engine.set_adapter(row, "peft")
        engine.write_prompt(row, tokens[:-1])
        engine.prefill([row])
        engine.write_token(row, tokens[-1])
        engine.decode([row])
        np.testing.assert_allclose(engine.read_logits(row), expected, atol=1e-4)
