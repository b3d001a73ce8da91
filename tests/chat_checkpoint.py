"""Writes a tiny random chat model with a real byte-level tokenizer and chat template, without torch."""

import json
from pathlib import Path
from typing import Any

from checkpoints import write_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "<|bos|>{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('role ' + m.role + ' is unknown') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = ["the quick brown fox jumps over the lazy dog", "Prefill fills the cache, Decode appends to it."]


def write_chat_checkpoint(folder: Path, *, template: str | None = TEMPLATE, **overrides: Any) -> Path:
    """Write weights, tokenizer and chat template; `overrides` are fields of config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fields = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 3}
    write_checkpoint(folder, **(fields | overrides))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|end|>"}
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
