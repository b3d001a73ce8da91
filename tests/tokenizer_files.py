"""Writes tokenizers of every kind that checkpoints of our families have, as their files would be on the hub."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "the quick brown fox jumps over the lazy dog", "Prefill fills the cache, Decode appends to it.",
    "def f(x):\n    return x + 1\n", "naïve café, 12345 67.89", "don't we'll I'm they've", "猫が好き",
]  # fmt: skip
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_PATTERN = QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def byte_level(pattern: str | None, tokens: Iterable[AddedToken]) -> Tokenizer:
    """Byte-level BPE; with a pattern as Llama 3 and Qwen split, without as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if pattern is None
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            ]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def gpt2() -> Tokenizer:
    return byte_level(None, special("<|endoftext|>"))


def llama3() -> Tokenizer:
    tokenizer = byte_level(
        LLAMA_PATTERN, special("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    )
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(
        single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]}:1 $B:1", special_tokens=[bos]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen() -> Tokenizer:
    tokenizer = byte_level(QWEN_PATTERN, special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<tool_call>", normalized=False)])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def odd_qwen() -> Tokenizer:
    """Splits as no Qwen does: Qwen2Tokenizer ignores that."""
    tokenizer = qwen()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def _pieces() -> list[str]:
    words = sorted({f"▁{word}" for text in TEXT for word in text.split()} | {"▁", "a", "b", "s", "▁t", "he"})
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *"abcdefghijklmnopqrstuvwxyz"]


def sentencepiece_bpe(prepend: str = "first") -> Tokenizer:
    """BPE with byte fallback and Metaspace, as Mistral has it."""
    pieces = list(dict.fromkeys([*_pieces(), "th", "the", "▁the"]))
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)}, merges, byte_fallback=True, fuse_unk=True,
            unk_token="<unk>",
        )
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def sentencepiece_unigram() -> Tokenizer:
    pieces = list(dict.fromkeys(_pieces()))
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(number % 37)) for number, piece in enumerate(pieces)], 0, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return tokenizer


def stripping() -> Tokenizer:
    """Added tokens that take the spaces around them, match whole words only, or are matched after normalization."""
    tokenizer = byte_level(LLAMA_PATTERN, special("<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<word>", single_word=True, normalized=False), AddedToken("norm", normalized=True),
            AddedToken("<both>", lstrip=True, rstrip=True, special=True, normalized=False),
        ]
    )  # fmt: skip
    return tokenizer


def truncating() -> Tokenizer:
    """Has its limits of training in tokenizer.json; nobody wants a prompt cut or padded by them."""
    tokenizer = llama3()
    tokenizer.enable_truncation(4, stride=1)
    tokenizer.enable_padding(length=64, pad_id=3, pad_token="<|eot_id|>")
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    function.__name__: function
    for function in (gpt2, llama3, qwen, odd_qwen, sentencepiece_bpe, sentencepiece_unigram, stripping, truncating)
}


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, config: dict[str, Any] | None = None, *, model_type: str = "llama",
    decoder: bool = False,
) -> Path:  # fmt: skip
    """Write tokenizer.json, tokenizer_config.json and a config.json that names the kind of model.

    With `decoder` the added tokens stand in tokenizer_config.json too, as transformers 4 wrote them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = dict(config or {})
    if decoder:
        config["added_tokens_decoder"] = {
            str(number): {
                name: getattr(token, name)
                for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            }
            for number, token in tokenizer.get_added_tokens_decoder().items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder
