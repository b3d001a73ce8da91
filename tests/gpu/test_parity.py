"""Token for token with Hugging Face transformers, on checkpoints that it made itself from random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gpu import load_engine  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]

PROMPT, NEW = 21, 72
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_IN_FULL = YARN | {
    "mscale": 0.7,
    "mscale_all_dim": 1.2,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "truncate": False,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": LINEAR,
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn_in_full": YARN_IN_FULL,
    "yarn_attention_factor": YARN | {"attention_factor": 1.3},
}
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "one_kv_head": {"num_key_value_heads": 1},
    "all_kv_heads": {"num_key_value_heads": 4},
    "wide_heads": {"head_dim": 32},
    "one_layer": {"num_hidden_layers": 1, "rms_norm_eps": 1e-3},
}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
CASES = [
    *((family, {"rope_parameters": rope}, f"{family}-{name}") for family in FAMILIES for name, rope in ROPES.items()),
    *((family, shape, f"{family}-{name}") for family in FAMILIES for name, shape in SHAPES.items()),
    ("Llama", {"attention_bias": True, "mlp_bias": True}, "Llama-biases"),
    ("Llama", {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 24}, "Llama-bias-tied"),
    ("Qwen3", {"attention_bias": True}, "Qwen3-bias"),
    ("Mistral", {"sliding_window": 128}, "Mistral-window"),
]


def make(family: str, **fields: Any) -> Any:
    """Make a model whose norms, biases and logits are not trivial."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 199,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if family == "Mistral":
        sizes["sliding_window"] = None
    config = getattr(transformers, f"{family}Config")(**sizes | fields)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def compare(model: Any, folder: Path) -> None:
    """Generate greedily with both, and compare the tokens and the logits of prefill and of every decode step."""
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        reference = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    engine = load_engine(folder, max_batch=2, capacity=128)
    rows = engine.kv_cache.acquire(2)[1:]
    [row] = rows
    engine.write_prompt(row, ids[0].tolist())
    engine.prefill(rows)
    tokens, worst = [], []
    for step, logits in enumerate(reference.logits):
        worst.append(float(np.abs(engine.read_logits(row) - logits[0].numpy()).max()))
        engine.sample(rows)
        tokens += engine.sampled(rows)
        if step < NEW - 1:
            engine.decode(rows)
    assert len(set(tokens)) > 8  # no run that repeats itself, which any mistake could pass
    assert tokens == reference.sequences[0, PROMPT:].tolist()
    assert worst[0] <= 1e-4, "prefill"
    assert max(worst[1:]) <= 1e-4, "decode"


@pytest.mark.parametrize(("family", "fields"), [case[:2] for case in CASES], ids=[name for _, _, name in CASES])
def test_tokens_and_logits_agree(tmp_path: Path, family: str, fields: dict[str, Any]) -> None:
    model = make(family, **fields)
    model.save_pretrained(tmp_path)
    compare(model, tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["10GB", "60KB"])
def test_stored_dtypes_and_shards_agree(tmp_path: Path, dtype: str, shard: str) -> None:
    model = make("Llama").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "60KB")
    compare(type(model).from_pretrained(tmp_path, dtype=torch.float32), tmp_path)
