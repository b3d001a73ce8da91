"""Loads a checkpoint's tokenizer: with the library tokenizers where its files say enough, else with transformers.

Importing transformers takes seconds, so what its AutoTokenizer would do is done here for the tokenizers that most
checkpoints have: those that tokenizer.json describes whole. Which these are is read from the files, and in doubt
transformers decides, as a wrong token id is worse than a slow start.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from gpu import CheckpointError
from gpu.checkpoint.files import read_object, read_text
from phases.printable import one_line

Templates = str | dict[str, str] | None  # one chat template, or several by name

# The special tokens that every tokenizer may name, in the order in which transformers adds them.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Where one of these stands in tokenizer_config.json, transformers must say what it means.
_UNUSUAL = (
    "auto_map", "fast_tokenizer_files", "fix_mistral_regex", "gguf_file", "init_inputs", "post_processor",
    "model_specific_special_tokens", "split_special_tokens", "tokenizer_object", "tokenizer_padding",
    "tokenizer_truncation",
)  # fmt: skip

# The pipeline and tokens of transformers' Qwen2Tokenizer, which takes only the vocabulary from tokenizer.json.
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_TOKENS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")


class Backend(Protocol):
    """What turns text into ids and back, and what the checkpoint says beside it."""

    @property
    def templates(self) -> Templates: ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """By name, such as "bos_token": variables of the chat template."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, special_tokens: bool) -> Sequence[int]:
        """Ids of a text, with those that the tokenizer puts around it if asked for; raises CheckpointError."""
        ...

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of ids, without clean-up and, unless asked for, special tokens; raises CheckpointError."""
        ...

    def decode_token(self, token: int) -> str:
        """The text of one id, a special token's too; raises CheckpointError."""
        ...

    def as_json(self) -> str:
        """The tokenizer as a tokenizer.json describes it; raises CheckpointError where it is none of those."""
        ...


def load_backend(folder: Path) -> Backend:
    """Load the tokenizer of a checkpoint folder.

    Raises
    ------
    CheckpointError
        When there is none, its files make no sense, or transformers is needed and not installed.
    """
    config = _optional_object(folder / "tokenizer_config.json")
    templates = _templates(folder, config)
    reason = "there is no tokenizer.json"
    if (folder / "tokenizer.json").exists():
        text = read_text(folder / "tokenizer.json")
        model_config = _optional_object(folder / "config.json")
        kind, reason = _kind(folder, config, model_config, byte_level='"ByteLevel"' in text)
        if kind is not None:
            with _foreign(f"the tokenizer in {one_line(folder)} cannot be used"):
                backend = _fast_backend(text, config, templates, qwen=kind == "qwen")
            if backend is not None:
                return backend
            reason = "its tokenizer.json is not what transformers makes of a Qwen2Tokenizer"
    return _transformers_backend(folder, templates, reason)


# --- which loader ---------------------------------------------------------------------------------------------------


def _kind(
    folder: Path, config: Mapping[str, Any], model_config: Mapping[str, Any], *, byte_level: bool
) -> tuple[str | None, str]:
    """What AutoTokenizer makes of these files: "plain" (tokenizer.json as it is), "qwen", or None and why.

    After `AutoTokenizer.from_pretrained` and its tables in transformers 5.
    """
    unusual = [name for name in _UNUSUAL if config.get(name)]
    legacy = "added_tokens_decoder" not in config and any(
        (folder / name).exists() for name in ("special_tokens_map.json", "added_tokens.json")
    )
    declared = config.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise CheckpointError(f"tokenizer_class in tokenizer_config.json is {declared!r:.80}, expected a name")
    if unusual:
        return None, f"its tokenizer_config.json holds {unusual[0]}"
    if legacy:
        return None, "its special tokens stand in files of transformers 4"
    if (folder / "tekken.json").exists():
        return None, "it has a tekken.json"
    if declared is None and model_config.get("tokenizer_class") is not None:
        return None, "its config.json names a tokenizer_class"
    name = (declared or "").removesuffix("Fast")
    whole = name in ("PreTrainedTokenizer", "TokenizersBackend") or (name == "LlamaTokenizer" and byte_level)
    match model_config.get("model_type"):
        case "llama" if whole or not name:
            return "plain", ""
        case "mistral" if whole or name in ("", "LlamaTokenizer"):
            return "plain", ""
        case "qwen3" if whole:
            return "plain", ""
        case "qwen2" | "qwen3" if whole or name in ("", "Qwen2Tokenizer"):
            return "qwen", ""
        case model_type:
            return None, f"it is a {one_line(name, 80) or 'tokenizer'} of a {model_type!r:.80} model"


def _is_qwen(tokenizer: Tokenizer, decoder: Mapping[int, AddedToken]) -> bool:
    """Whether Qwen2Tokenizer would give the same ids as tokenizer.json: same pipeline, same added tokens."""
    model = tokenizer.model
    return (
        isinstance(model, BPE)
        and not (model.dropout or model.unk_token or model.continuing_subword_prefix or model.end_of_word_suffix)
        and not (model.fuse_unk or model.byte_fallback or model.ignore_merges)
        and _state(tokenizer.normalizer) == {"type": "NFC"}
        and [
            {key: part.get(key) for key in ("type", "pattern", "behavior", "invert", "add_prefix_space", "use_regex")}
            for part in _state(tokenizer.pre_tokenizer).get("pretokenizers", ())
        ]
        == [
            {"type": "Split", "pattern": {"Regex": _QWEN_PATTERN}, "behavior": "Isolated", "invert": False,
             "add_prefix_space": None, "use_regex": None},
            {"type": "ByteLevel", "pattern": None, "behavior": None, "invert": None, "add_prefix_space": False,
             "use_regex": False},
        ]
        and _state(tokenizer.decoder).get("type") == "ByteLevel"
        and _texts(decoder) == _texts(tokenizer.get_added_tokens_decoder())
    )  # fmt: skip


def _state(part: Any) -> dict[str, Any]:
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _texts(tokens: Mapping[int, AddedToken]) -> dict[int, str]:
    return {number: repr(token) for number, token in tokens.items()}


# --- with tokenizers ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FastBackend:
    """A tokenizer that tokenizer.json describes whole."""

    tokenizer: Tokenizer
    templates: Templates = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str, *, special_tokens: bool) -> Sequence[int]:
        with _foreign("the checkpoint's tokenizer fails"):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special_tokens).ids
            return ids

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        with _foreign("the checkpoint's tokenizer fails"):
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=not special_tokens))

    def decode_token(self, token: int) -> str:
        with _foreign("the checkpoint's tokenizer fails"):
            return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def as_json(self) -> str:
        return str(self.tokenizer.to_str())


def _fast_backend(text: str, config: Mapping[str, Any], templates: Templates, *, qwen: bool) -> FastBackend | None:
    """The tokenizer of tokenizer.json, with the tokens that tokenizer_config.json adds as TokenizersBackend does.

    None if `qwen` is asked for and Qwen2Tokenizer would be another.
    """
    tokenizer = Tokenizer.from_str(text)
    present = tokenizer.get_added_tokens_decoder()
    given = config.get("added_tokens_decoder")
    decoder = present if given is None else {int(number): _added(token) for number, token in given.items()}
    if qwen and (config.get("add_prefix_space") or not _is_qwen(tokenizer, decoder)):
        return None
    named, extra = _special_tokens((_QWEN_TOKENS if qwen else {}) | dict(config), tokenizer.padding, decoder)
    _add_tokens(tokenizer, decoder, named, extra)
    if qwen:
        again = dict.fromkeys(str(token) for token in (*named.values(), *extra))
        tokenizer.add_tokens([AddedToken(token, special=True) for token in again])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return FastBackend(tokenizer, templates, {name: str(token) for name, token in named.items()})


Token = str | AddedToken


def _special_tokens(
    config: Mapping[str, Any], padding: Mapping[str, Any] | None, decoder: Mapping[int, AddedToken]
) -> tuple[dict[str, Token], list[Token]]:
    """The tokens that tokenizer_config.json names, and those that it lists without a name."""
    values = {name: _token(value) for name, value in config.items() if name.endswith("_token") and value is not None}
    if padding is not None and "pad_token" not in config:
        values["pad_token"] = str(padding["pad_token"])
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    own = {name: value for name, value in values.items() if name not in _NAMED and value is not None}
    if isinstance(listed, dict):
        own |= {name: _expect_token(name, _token(value)) for name, value in listed.items()}
        listed = []
    by_text = {token.content: token for token in decoder.values()}
    named: dict[str, Token] = {}
    for name in _NAMED:
        if name in values:
            token = _expect_token(name, values[name])
            named[name] = by_text.get(str(token), token)
    return named | own, [_expect_token("extra_special_tokens", _token(value)) for value in listed]


def _token(value: Any) -> Token | None:
    """A token as tokenizer_config.json writes it; None for something else, such as the flag add_bos_token."""
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return _added(value)
    return value if isinstance(value, str) else None


def _added(value: Mapping[str, Any]) -> AddedToken:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{name: value[name] for name in names if name in value})  # it would print any other name


def _expect_token(name: str, token: Token | None) -> Token:
    if token is None:
        raise CheckpointError(f"{name!r:.80} in tokenizer_config.json is no token")
    return token


def _add_tokens(
    tokenizer: Tokenizer, decoder: Mapping[int, AddedToken], named: Mapping[str, Token], extra: Sequence[Token]
) -> None:
    """Add what tokenizer.json lacks, in the order in which transformers does, as that decides their ids."""
    present = tokenizer.get_added_tokens_decoder()
    known = {repr(token) for token in present.values()}
    missing: list[Token] = [token for _, token in sorted(decoder.items()) if repr(token) not in known]
    texts = {token.content for token in present.values()} | {str(token) for token in missing}
    for token in (*named.values(), *extra):
        if str(token) not in texts and token not in missing:
            missing.append(token)
    names = {str(token) for token in named.values()}
    tokens = [AddedToken(token, special=True) if isinstance(token, str) else token for token in missing]
    for token in tokens:
        token.special = token.special or token.content in names
    tokenizer.add_tokens(tokens)


# --- with transformers ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TransformersBackend:
    """A tokenizer that only transformers knows how to load."""

    tokenizer: Any
    templates: Templates

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return dict(self.tokenizer.special_tokens_map)

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str, *, special_tokens: bool) -> Sequence[int]:
        with _foreign("the checkpoint's tokenizer fails"):
            ids: list[int] = self.tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
            return ids

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        with _foreign("the checkpoint's tokenizer fails"):
            return str(
                self.tokenizer.decode(
                    list(ids), skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=False
                )
            )

    def decode_token(self, token: int) -> str:
        with _foreign("the checkpoint's tokenizer fails"):
            return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def as_json(self) -> str:
        with _foreign("the checkpoint's tokenizer is not one of the library tokenizers"):
            return str(self.tokenizer.backend_tokenizer.to_str())


def _transformers_backend(folder: Path, templates: Templates, reason: str) -> TransformersBackend:
    names = one_line(", ".join(sorted(path.name for path in folder.iterdir()))) if folder.is_dir() else "no folder"
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would warn that torch is not installed
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise CheckpointError(
            f"the tokenizer in {one_line(folder)} needs transformers, as {reason}: "
            f"pip install 'phasewalk[transformers]' (files: {names})"
        ) from None
    with _foreign(f"no tokenizer can be loaded from {one_line(folder)} (files: {names}; {reason})"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.model_max_length = sys.maxsize  # it would warn of long prompts, which Tokenize refuses by numbers
        return TransformersBackend(tokenizer, templates)


# --- what both need -------------------------------------------------------------------------------------------------


def _templates(folder: Path, config: Mapping[str, Any]) -> Templates:
    """The chat templates of a checkpoint: files of their own come before what tokenizer_config.json holds."""
    texts = {"default": folder / "chat_template.jinja"}
    texts |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: read_text(path, largest=2**20) for name, path in texts.items() if path.exists()}
    if found:
        return found["default"] if list(found) == ["default"] else found
    given = config.get("chat_template")
    if given is None:
        given = _optional_object(folder / "chat_template.json").get("chat_template")
    if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        given = {entry.get("name"): entry.get("template") for entry in given}
    if isinstance(given, dict) and all(isinstance(text, str) for pair in given.items() for text in pair):
        return dict(given) or None
    if given is None or isinstance(given, str):
        return given or None
    raise CheckpointError(f"the chat template in {one_line(folder)} is {given!r:.80}, expected text or a list of them")


def _optional_object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


@contextmanager
def _foreign(what: str) -> Iterator[None]:
    """Make whatever a library raises at files from outside, panics of Rust included, one CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C, say
        raise CheckpointError(f"{what}: {one_line(error) or type(error).__name__}") from error
