"""What a checkpoint's generation_config.json asks for: what is honoured, and the names of what is not."""

from collections.abc import Mapping
from typing import Any

from phases.errors import RequestError
from phases.request import SamplingParams

_BY_NAME = (  # fields of SamplingParams that go by the same name
    "temperature", "top_k", "top_p", "min_p", "max_new_tokens", "min_new_tokens", "repetition_penalty",
    "no_repeat_ngram_size",
)  # fmt: skip
_HONOURED = (*_BY_NAME, "do_sample", "eos_token_id", "stop_strings", "suppress_tokens")
_CHANGE_NOTHING = (  # what the library that wrote the file notes for itself, or what has no say in which tokens come
    "transformers_version", "bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache",
    "cache_implementation", "cache_config", "return_legacy_cache", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "low_memory", "compile_config",
    "disable_compile", "prefill_chunk_size", "_name_or_path", "_commit_hash", "generation_kwargs",
)  # fmt: skip
_OFF: Mapping[str, Any] = {  # by the documentation of transformers' GenerationConfig
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1,
    "diversity_penalty": 0, "length_penalty": 1, "early_stopping": False, "min_length": 0,
    "max_length": 20, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "guidance_scale": 1, "penalty_alpha": 0,
    "renormalize_logits": False, "remove_invalid_values": False, "token_healing": False, "is_assistant": False,
    "begin_suppress_tokens": [], "bad_words_ids": [], "dola_layers": [],
    "sequence_bias": {},
}  # fmt: skip
_FOR_AN_ASSISTANT = ("num_assistant_", "assistant_", "target_lookbehind", "prompt_lookup_")  # speculates, same tokens


def params_of(config: Mapping[str, Any]) -> SamplingParams:
    """Give what it says of how tokens are drawn; `do_sample: false` means greedy. Raises RequestError."""
    known: dict[str, Any] = {name: config.get(name) for name in _BY_NAME}
    if config.get("do_sample") is False:
        known["temperature"] = 0
    stop = config.get("eos_token_id")
    if stop is not None and not isinstance(stop, int | list):
        raise RequestError(f"eos_token_id is a token id or a list of them, not {stop!r:.200}")
    stops = (stop,) if isinstance(stop, int) else None if stop is None else tuple(stop)
    words = _biases([[word, 0.0] for word in _list_of(config, "bad_words_ids")]) or ()
    bad = [token for token, _ in words if token not in (stops or ())]  # a stop token is no bad word, they say
    return SamplingParams(
        **known, stop_token_ids=stops, stop=config.get("stop_strings"), logit_bias=_biases(config.get("sequence_bias")),
        forbidden_token_ids=(*_list_of(config, "suppress_tokens"), *bad) or None,
    )  # fmt: skip


def not_honoured(config: Mapping[str, Any]) -> list[str]:
    """Give each setting, in words, that would change which tokens come, or may, and that nobody here heeds."""
    return [
        f"{name} {value!r:.80}"
        for name, value in config.items()
        if value is not None
        and name not in _HONOURED
        and name not in _CHANGE_NOTHING
        and not name.startswith(_FOR_AN_ASSISTANT)
        and not (name in _OFF and value == _OFF[name])
        and not (name == "sequence_bias" and _biases(value))
        and not (name == "bad_words_ids" and isinstance(value, list) and _biases([[word, 0.0] for word in value]))
    ]


def _list_of(config: Mapping[str, Any], name: str) -> list[Any]:
    value = config.get(name)
    if not isinstance(value, list | None):
        raise RequestError(f"{name} is a list, not {value!r:.200}")
    return value or []


def _biases(value: Any) -> tuple[tuple[int, float], ...] | None:
    """Pairs of a token and its bias, if that is what each is for: several tokens in a row are not heeded."""
    match value:
        case [*pairs] if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            if all(isinstance(ids, list) and len(ids) == 1 and isinstance(ids[0], int) for ids, _ in pairs):
                return tuple((ids[0], bias) for ids, bias in pairs) or None
    return None
