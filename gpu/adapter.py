"""LoRA adapters in PEFT's format, read with suspicion: what is added to the products of a model's linear layers."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.files import read_object
from gpu.checkpoint.fingerprint import fingerprint
from gpu.checkpoint.index import expected_tensors
from gpu.checkpoint.safetensors import ITEM_BYTES, TensorEntry, read_header
from gpu.errors import AdapterError, CheckpointError
from gpu.printable import printable

Float32Array = npt.NDArray[np.float32]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DEFAULT_RANK = 64  # the highest that an engine takes unless it is told another
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<matrix>[AB])\.weight", re.ASCII)
_MOST_RANK = 1 << 17
_MOST_ALPHA = 1e6
_LARGEST_CONFIG = 1 << 20  # bytes
_LISTED = 4  # differences that an error names

# Fields of adapter_config.json that say how the adapter was trained or where it comes from; they change no product.
_OF_TRAINING = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "init_lora_weights",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "velora_config", "ensure_weight_tying",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha", "peft_type", "r",
    "rank_pattern", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_NAMED = {"use_dora": "DoRA", "modules_to_save": "whole modules", "fan_in_fan_out": "turned matrices"}
# Ways to begin training that leave the base's weights as they are; after another one, they are no longer those that
# the adapter was trained on.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# A pattern is a regular expression of whoever made the file, and must not take long. A name does not; what is more than
# that has no quantifier but one "any", and few alternatives, and there are few such patterns.
_NAME = re.compile(r"\^?[\w.]+\$?", re.ASCII)
_PATTERN = re.compile(r"[\w.^$|()\\-]{1,200}", re.ASCII)
_ANY, _ALTERNATIVES, _PATTERNS = 1, 4, 16


@dataclass(slots=True, frozen=True, eq=False)
class Adapter:
    """A LoRA adapter (Hu et al. 2021) of one model: the product of a linear layer with x has (x Aᵀ) Bᵀ added.

    Attributes
    ----------
    matrices : mapping
        For each linear layer that is adapted, by its name in the checkpoint (`model.layers.3.self_attn.q_proj`): A,
        [rank, in] float32, and B, [out, rank] float32, which has the scale in it.
    rank : int
        The highest of its matrices.
    fingerprint : str
        Equal for equal files.
    """

    matrices: Mapping[str, tuple[Float32Array, Float32Array]]
    rank: int
    fingerprint: str

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices in float32."""
        return sum(a.nbytes + b.nbytes for a, b in self.matrices.values())

    @classmethod
    def read(cls, folder: str | Path, model: ModelConfig, *, max_rank: int = DEFAULT_RANK) -> "Adapter":
        """Read the adapter that PEFT saved in a folder: `adapter_config.json` and `adapter_model.safetensors`.

        The scale is lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (Kalajdzievski 2023), each as the
        patterns for the layer say.

        Raises
        ------
        AdapterError
            If the folder is not there, a file is damaged, it is no LoRA adapter of this model (its tensors have other
            names or shapes), it has a higher rank than `max_rank`, or it asks for what is not supported: DoRA, biases,
            modules saved whole, other matrices than those of attention and MLP.
        """
        with _told(Path(folder).expanduser()) as folder:
            return cls._read(folder, model, max_rank)

    @classmethod
    def _read(cls, folder: Path, model: ModelConfig, max_rank: int) -> "Adapter":
        files = _files(folder)
        config = _Config.of(read_object(folder / CONFIG, largest=_LARGEST_CONFIG))
        found = _matrices(read_header(folder / WEIGHTS))
        shapes = adapted_shapes(model)
        _check_modules(config, found, shapes)
        matrices = {}
        for module in shapes:
            if module in found:
                rank = config.rank(module)
                _check_matrices(module, found[module], shapes[module], rank, max_rank)
                matrices[module] = _read_matrices(module, found[module], np.float32(config.scale(module, rank)))
        rank = max(len(a) for a, _ in matrices.values())
        return cls(matrices, rank, fingerprint(files))


def adapter_fingerprint(folder: str | Path) -> str:
    """Give the fingerprint of the adapter in a folder, unread; raises AdapterError if there is none."""
    with _told(Path(folder).expanduser()) as folder:
        return fingerprint(_files(folder))


@contextmanager
def _told(folder: Path) -> Iterator[Path]:
    """Say of every fault which adapter has it."""
    try:
        yield folder
    except (CheckpointError, OSError) as error:
        reason = error if isinstance(error, CheckpointError) else error.strerror or error
        raise AdapterError(f"the adapter in {printable(folder)} cannot be used: {printable(reason, 2000)}") from None


def _files(folder: Path) -> list[Path]:
    """Give the two files of an adapter, if they are there."""
    if not folder.is_dir():
        raise AdapterError("there is no such folder")
    if not (folder / CONFIG).exists():
        raise AdapterError(f"it has no {CONFIG}: is it the folder of a PEFT adapter?")
    if not (folder / WEIGHTS).exists():
        pickled = " (it holds pickled ones, which are never read)" if any(folder.glob("*.bin")) else ""
        raise AdapterError(f"it has no {WEIGHTS}{pickled}: save the adapter with safetensors")
    for path in (folder / CONFIG, folder / WEIGHTS):
        if not path.is_file():
            raise AdapterError(f"{path.name} is no regular file")
    return [folder / CONFIG, folder / WEIGHTS]


def adapted_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Give the linear layers that an adapter may change, in the order of their use, and what they are: [out, in]."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in expected_tensors(model).items()
        if name.endswith("_proj.weight")
    }


def numbers_of_adapter(model: ModelConfig, rank: int) -> int:
    """Count the numbers that an adapter of all linear layers holds at this rank."""
    return rank * sum(map(sum, adapted_shapes(model).values()))


@dataclass(slots=True, frozen=True)
class _Config:
    """What an adapter_config.json says of the matrices."""

    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | None  # None: a regular expression says which, and is not looked at
    excluded: tuple[str, ...]
    layers: frozenset[int] | None  # None: all

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "_Config":
        _refuse_unsupported(values)
        targets, excluded = values.get("target_modules"), values.get("exclude_modules") or ()
        if isinstance(excluded, str):
            targets, excluded = "", ()
        layers = values.get("layers_to_transform")
        layers = [layers] if isinstance(layers, int) else layers
        return cls(
            r=_number("r", values.get("r"), _MOST_RANK, whole=True),
            alpha=_number("lora_alpha", values.get("lora_alpha"), _MOST_ALPHA),
            rslora=_flag("use_rslora", values.get("use_rslora")),
            ranks=_pattern("rank_pattern", values, _MOST_RANK, whole=True),
            alphas=_pattern("alpha_pattern", values, _MOST_ALPHA),
            targets=None if isinstance(targets, str) else _names("target_modules", targets),
            excluded=_names("exclude_modules", excluded) if excluded else (),
            layers=frozenset(_layers(layers)) if layers not in (None, []) else None,
        )

    def expects(self, module: str) -> bool:
        """Whether a linear layer of the model is one that the adapter changes, as far as names tell."""
        if self.layers is not None and int(module.split(".")[2]) not in self.layers:
            return False
        return self.targets is not None and _ends(module, self.targets) and not _ends(module, self.excluded)

    def rank(self, module: str) -> int:
        return int(_matched(self.ranks, module, self.r))

    def scale(self, module: str, rank: int) -> float:
        return float(_matched(self.alphas, module, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    if (kind := values.get("peft_type")) != "LORA":
        raise AdapterError(f"peft_type is {kind!r:.80}, expected LORA")
    if (task := values.get("task_type")) not in (None, "CAUSAL_LM"):
        raise AdapterError(f"task_type is {task!r:.80}, expected CAUSAL_LM")
    if (bias := values.get("bias", "none")) != "none":
        raise AdapterError(f"bias is {bias!r:.80}: an adapter that changes biases is not supported")
    if (start := values.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        raise AdapterError(
            f"init_lora_weights is {start!r:.80}, which changed the base model's weights: save the adapter "
            f"converted to plain LoRA (path_initial_model_for_weight_conversion)"
        )
    for name, value in values.items():
        if value and name not in _OF_TRAINING | _READ:
            words = f" ({_NAMED[name]})" if name in _NAMED else ""
            raise AdapterError(f"it asks for {printable(name, 80)}{words}, which is not supported: {value!r:.80}")


def _number(name: str, value: Any, most: float, *, whole: bool = False) -> Any:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not (1 if whole else 0) <= value <= most:
        raise AdapterError(f"{printable(name, 300)} is {value!r:.80}, expected a number of at most {most:.0f}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | None):
        raise AdapterError(f"{name} is {value!r:.80}, expected true or false")
    return bool(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise AdapterError(f"{name} is {value!r:.200}, expected a list of names")
    return tuple(value)


def _layers(value: Any) -> Iterator[int]:
    if not isinstance(value, list):
        raise AdapterError(f"layers_to_transform is {value!r:.200}, expected a list of numbers")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int):
            raise AdapterError(f"layers_to_transform holds {item!r:.80}, expected numbers of layers")
        yield item


def _pattern(name: str, values: Mapping[str, Any], most: float, *, whole: bool = False) -> dict[str, Any]:
    given = values.get(name) or {}
    if not isinstance(given, dict):
        raise AdapterError(f"{name} is a {type(given).__name__}, expected a JSON object")
    for key, value in given.items():
        _number(f"{name} of {key}", value, most, whole=whole)
        if not _NAME.fullmatch(key):
            _check_pattern(name, key)
    if sum(not _NAME.fullmatch(key) for key in given) > _PATTERNS:
        raise AdapterError(f"{name} has more than {_PATTERNS} keys that are no plain names of modules")
    return given


def _check_pattern(name: str, key: str) -> None:
    try:
        if not _PATTERN.fullmatch(key.replace(".*", ".", _ANY)) or key.count("|") > _ALTERNATIVES:
            raise re.error("it holds a quantifier, or too many alternatives")
        re.compile(key)
    except re.error as error:
        raise AdapterError(f"{name} has a key {key!r:.200} that cannot be matched: {error}") from None


def _matched(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """Give what the first key says that matches the end of a module's name, as PEFT's `get_pattern_key` finds it."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(f".{module}".endswith(f".{name.removeprefix(_PREFIX)}") for name in names)


def _matrices(entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """Sort the tensors of a file by the linear layer that they are of, and which of the two matrices they are."""
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        if (parts := _TENSOR.fullmatch(name)) is None:
            raise AdapterError(f"it holds a tensor {printable(name, 200)}, which is no matrix of a LoRA adapter")
        if entry.dtype not in ITEM_BYTES:
            raise AdapterError(
                f"{printable(name, 200)} is {printable(entry.dtype, 20)}, expected one of {', '.join(ITEM_BYTES)}"
            )
        found.setdefault(parts["module"], {})[parts["matrix"]] = entry
    return found


def _check_modules(
    config: _Config, found: Mapping[str, Mapping[str, TensorEntry]], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """See that the adapter changes linear layers that the model has, all of those that it says, and no others."""
    if not found:
        raise AdapterError(f"{WEIGHTS} holds no matrices")
    names = sorted({module.rpartition(".")[2] for module in shapes})
    lacking = [name for name in config.targets or () if not any(_ends(module, (name,)) for module in shapes)]
    lacking += [module for module in found if module not in shapes]
    if lacking:
        raise AdapterError(
            f"it adapts {printable(lacking[0], 200)}, which the model has not, or which cannot be adapted: expected "
            f"{', '.join(names)} of the model's layers"
        )
    if config.layers is not None and (odd := config.layers - {int(module.split(".")[2]) for module in shapes}):
        raise AdapterError(f"layers_to_transform names layer {min(odd)}, which the model has not")
    problems = [
        f"missing: the matrices of {module}" for module in shapes if config.expects(module) and module not in found
    ]
    if config.targets is not None:
        problems += [f"unexpected: the matrices of {module}" for module in found if not config.expects(module)]
    problems += [f"missing: one of the two matrices of {module}" for module, pair in found.items() if len(pair) < 2]
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise AdapterError(f"{WEIGHTS} is not what {CONFIG} says: {'; '.join(problems[:_LISTED])}{more}")


def _check_matrices(
    module: str, pair: Mapping[str, TensorEntry], shape: tuple[int, int], rank: int, max_rank: int
) -> None:
    if rank > max_rank:
        raise AdapterError(
            f"{module} has rank {rank}, at most {max_rank} was asked for: load with max_lora_rank={rank}"
        )
    for matrix, expected in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
        if pair[matrix].shape != expected:
            raise AdapterError(
                f"lora_{matrix} of {module} is {printable(list(pair[matrix].shape), 80)}, expected {list(expected)}: "
                f"is it an adapter of another model?"
            )


def _read_matrices(
    module: str, pair: Mapping[str, TensorEntry], scale: np.float32
) -> tuple[Float32Array, Float32Array]:
    a, b = (np.empty(pair[matrix].shape, np.float32) for matrix in "AB")
    pair["A"].read_into(a)
    pair["B"].read_into(b)
    with np.errstate(over="ignore"):
        b *= scale
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AdapterError(f"the matrices of {module} hold NaN or infinities")
    return a, b
