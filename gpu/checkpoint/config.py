"""What a checkpoint's config.json says about the model, checked field by field."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.checkpoint.files import read_object
from gpu.errors import CheckpointError
from gpu.printable import printable
from gpu.rope import RopeConfig

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

# What transformers assumes where a config.json is silent; a field that stands nowhere here must be given.
_MODEL_TYPES = dict(zip(("llama", "mistral", "qwen2", "qwen3"), ARCHITECTURES, strict=True))
_DEFAULT_POSITIONS = dict(zip(ARCHITECTURES, (2048, 131072, 32768, 32768), strict=True))
_DEFAULT_HEAD_DIM = {"Qwen3ForCausalLM": 128}
_DEFAULT_EPS = 1e-6

# Far above any known model; a damaged or hostile config must not ask for terabytes.
_LIMITS = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 17,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 27,
    "sliding_window": 1 << 27,
}


@dataclass(slots=True, frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer of the Llama family.

    `heads * head_dim` need not equal `hidden`; `heads` is a multiple of `kv_heads`; `head_dim` is even.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rms_norm_eps: float
    rope: RopeConfig
    max_positions: int
    tied_embeddings: bool  # the output matrix is the embedding table
    qkv_bias: bool
    output_bias: bool  # on the attention's output projection
    mlp_bias: bool
    qk_norm: bool  # an RMS norm over each head of q and k
    sliding_window: int | None  # None where every token sees all before it
    eos_ids: tuple[int, ...]
    bos_id: int | None

    @property
    def query_group(self) -> int:
        """How many query heads share one key and value head."""
        return self.heads // self.kv_heads

    @property
    def kv_numbers(self) -> int:
        """How many numbers the KV cache holds for one position of one row, all layers together."""
        return self.layers * 2 * self.kv_heads * self.head_dim

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelConfig":
        """Read `config.json` of a checkpoint folder.

        Raises
        ------
        CheckpointError
            If there is none, it is no JSON object, or it describes what `from_json` refuses.
        """
        path = folder / "config.json"
        if not path.exists():
            raise CheckpointError(f"{printable(folder)} has no config.json: is it the folder of a model?")
        try:
            return cls.from_json(read_object(path))
        except RecursionError:
            raise CheckpointError(f"{printable(path)} is nested too deeply") from None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Read the fields of a config.json, in the words of transformers 4 or of transformers 5.

        Raises
        ------
        CheckpointError
            If the model needs something that is not supported, or a field is missing or makes no sense.
        """
        architecture = _architecture(values)
        _refuse_unsupported(values)
        fields = _Fields(values)
        qwen = architecture.startswith("Qwen")
        llama = architecture == "LlamaForCausalLM"
        hidden = fields.size("hidden_size")
        heads = fields.size("num_attention_heads")
        silent = "num_key_value_heads" not in values
        kv_heads = fields.size("num_key_value_heads", 8 if silent and architecture == "MistralForCausalLM" else heads)
        head_dim = fields.size("head_dim", _DEFAULT_HEAD_DIM.get(architecture, hidden // heads))
        max_positions = fields.size("max_position_embeddings", _DEFAULT_POSITIONS[architecture])
        if heads % kv_heads:
            raise CheckpointError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if values.get("head_dim") is None and architecture not in _DEFAULT_HEAD_DIM and hidden % heads:
            raise CheckpointError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        if head_dim % 2:
            raise CheckpointError(f"head_dim is {head_dim}: rotary embeddings need an even number")
        attention_bias = fields.flag("attention_bias") and architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
        layers = fields.size("num_hidden_layers")
        return cls(
            architecture=architecture,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=fields.size("intermediate_size"),
            vocab=fields.size("vocab_size"),
            rms_norm_eps=fields.number("rms_norm_eps", _DEFAULT_EPS, below=1.0),
            rope=RopeConfig.from_json(values, max_positions=max_positions),
            max_positions=max_positions,
            tied_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
            output_bias=attention_bias,
            mlp_bias=fields.flag("mlp_bias") and llama,
            qk_norm=architecture == "Qwen3ForCausalLM",
            sliding_window=_sliding_window(fields, qwen=qwen, llama=llama, layers=layers),
            eos_ids=fields.token_ids("eos_token_id"),
            bos_id=next(iter(fields.token_ids("bos_token_id")), None),
        )


@dataclass(slots=True, frozen=True)
class _Fields:
    """A config.json, read with suspicion."""

    values: Mapping[str, Any]

    def size(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"config.json does not say {name}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LIMITS[name]:
            raise CheckpointError(f"{name} is {value!r:.80}, expected a whole number from 1 to {_LIMITS[name]}")
        return value

    def number(self, name: str, default: float, *, below: float) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
            raise CheckpointError(f"{name} is {value!r:.80}, expected a number of at least 0 and below {below}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{name} is {value!r:.80}, expected true or false")
        return bool(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in ids):
            raise CheckpointError(f"{name} is {value!r:.80}, expected a token id or a list of them")
        return tuple(ids)


def _architecture(values: Mapping[str, Any]) -> str:
    named = values.get("architectures") or [_MODEL_TYPES.get(str(values.get("model_type")), values.get("model_type"))]
    if named == [None]:
        raise CheckpointError(f"config.json names no architecture: expected one of {', '.join(ARCHITECTURES)}")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in ARCHITECTURES:
        raise CheckpointError(
            f"the architecture {named!r:.200} is not supported: expected one of {', '.join(ARCHITECTURES)}"
        )
    return str(named[0])


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    if values.get("quantization_config") is not None:
        method = values["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, Mapping) else method
        raise CheckpointError(
            f"the weights are quantised ({method!r:.80}): use the checkpoint in bfloat16, float16 or float32"
        )
    activation = values.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"hidden_act is {activation!r:.80}: only silu is supported")


def _sliding_window(fields: _Fields, *, qwen: bool, llama: bool, layers: int) -> int | None:
    """Give the window if any layer uses one; Qwen has a switch and a first layer, Mistral only the number."""
    kinds = fields.values.get("layer_types") or []
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}:
        raise CheckpointError(f"layer_types is {kinds!r:.200}: only full_attention and sliding_attention are known")
    if llama or fields.values.get("sliding_window") is None:
        return None
    if qwen and not fields.flag("use_sliding_window"):
        return None
    first = fields.values.get("max_window_layers", 28)
    if qwen and kinds and "sliding_attention" not in kinds:
        return None
    if qwen and not kinds and isinstance(first, int) and first >= layers:
        return None
    return fields.size("sliding_window")
