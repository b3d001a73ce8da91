"""Finds the tensors of a checkpoint folder and checks them against what the model needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.files import read_object
from gpu.checkpoint.safetensors import ITEM_BYTES, TensorEntry, read_header
from gpu.errors import CheckpointError
from gpu.printable import printable

Progress = Callable[[str, int, int], None]
"""Called with (what is done, bytes done, bytes in all) while an engine loads; 0 of 0 where there are none to count."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LISTED = 8  # differences that an error names


def expected_tensors(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Give the name and shape of every tensor that a checkpoint of this model holds, in the order of their use."""
    hidden, intermediate = model.hidden, model.intermediate
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    if model.qkv_bias:
        layer |= {
            "self_attn.q_proj.bias": (queries,),
            "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.bias": (keys,),
        }
    if model.output_bias:
        layer |= {"self_attn.o_proj.bias": (hidden,)}
    if model.qk_norm:
        layer |= {"self_attn.q_norm.weight": (model.head_dim,), "self_attn.k_norm.weight": (model.head_dim,)}
    if model.mlp_bias:
        layer |= {
            "mlp.gate_proj.bias": (intermediate,),
            "mlp.up_proj.bias": (intermediate,),
            "mlp.down_proj.bias": (hidden,),
        }
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab, hidden)}
    names |= {f"model.layers.{index}.{name}": shape for index in range(model.layers) for name, shape in layer.items()}
    names |= {"model.norm.weight": (hidden,)}
    if not model.tied_embeddings:
        names |= {"lm_head.weight": (model.vocab, hidden)}
    return names


@dataclass(slots=True)
class Checkpoint:
    """The tensors of a checkpoint, found and checked, not yet read."""

    entries: Mapping[str, TensorEntry]
    progress: Progress | None = None
    done: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = sum(entry.size for entry in self.entries.values())

    @classmethod
    def open(cls, folder: Path, model: ModelConfig, progress: Progress | None = None) -> "Checkpoint":
        """Find every tensor that the model needs; reads headers only.

        Raises
        ------
        CheckpointError
            If the folder holds no safetensors, a file is damaged, or tensors are missing, unexpected, of a wrong
            shape or of a dtype that cannot be read; the error counts them and names the first.
        """
        found: dict[str, TensorEntry] = {}
        for name, only in _files(folder).items():
            header = read_header(folder / name)
            found |= header if only is None else {key: header[key] for key in only if key in header}
        expected = expected_tensors(model)
        problems = [f"missing: {name}" for name in expected if name not in found]
        for name, entry in found.items():
            if name not in expected:
                if not _harmless(name, model):
                    problems.append(f"unexpected: {printable(name)} {_shape(entry.shape)}")
            elif entry.shape != expected[name]:
                problems.append(f"wrong shape: {name} is {_shape(entry.shape)}, expected {list(expected[name])}")
            elif entry.dtype not in ITEM_BYTES:
                problems.append(
                    f"wrong dtype: {name} is {printable(entry.dtype, 20)}, expected one of {', '.join(ITEM_BYTES)}"
                )
        if problems:
            more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
            raise CheckpointError(
                f"the weights in {printable(folder)} are not those of a {model.architecture} with this config.json "
                f"({len(problems)} tensors differ): {'; '.join(problems[:_LISTED])}{more}"
            )
        return cls({name: found[name] for name in expected}, progress)

    @property
    def folder(self) -> Path:
        """The folder that the tensors lie in."""
        return next(iter(self.entries.values())).path.parent

    @property
    def numbers(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    def read_into(self, name: str, target: npt.NDArray[np.float32]) -> None:
        """Copy one tensor into a contiguous float32 array of as many elements, and report the progress."""
        entry = self.entries[name]
        entry.read_into(target)
        self.advance(entry.size)

    def advance(self, size: int) -> None:
        """Report that so many more bytes of the tensors have been read."""
        self.done += size
        if self.progress is not None:
            self.progress("reading weights", self.done, self.total)

    def announce(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report that something else is being done, and how far it is if it has bytes to count."""
        if self.progress is not None:
            self.progress(what, done, total)

    def read(self, *names: str) -> npt.NDArray[np.float32]:
        """Read tensors into a new array, one below the other."""
        shapes = [self.entries[name].shape for name in names]
        joined = np.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            self.read_into(name, joined[start : start + shape[0]])
            start += shape[0]
        return joined


def _files(folder: Path) -> Mapping[str, list[str] | None]:
    """Give the safetensors files to read, each with the tensors that the index places in it (None: all)."""
    if (folder / _INDEX).is_file():
        return _read_index(folder / _INDEX)
    if (folder / _SINGLE).is_file():
        return {_SINGLE: None}
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{printable(folder)} holds pickled weights only ({printable(', '.join(pickled))}), which can run code "
            f"when opened and are never read: convert the checkpoint to safetensors"
        )
    raise CheckpointError(f"{printable(folder)} holds neither {_SINGLE} nor {_INDEX}")


def _read_index(path: Path) -> dict[str, list[str]]:
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{printable(path)}: weight_map is a {type(weight_map).__name__}, expected a JSON object")
    files: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        # Only a file of this very folder: no "..", no separator of any system, nothing hidden.
        plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:\0")
        if not plain or name.startswith("."):
            raise CheckpointError(
                f"{printable(path)} places {tensor!r:.80} in {name!r:.80}: expected a plain *.safetensors name"
            )
        if name not in files and not (path.parent / name).is_file():
            raise CheckpointError(
                f"{printable(path)} names {name!r:.80}, which is not in the folder: fetch the checkpoint again"
            )
        files.setdefault(name, []).append(tensor)
    return files


def _shape(shape: tuple[int, ...]) -> str:
    return printable(list(shape), 80)


def _harmless(name: str, model: ModelConfig) -> bool:
    """Say whether a tensor may be left unread: old checkpoints store rope tables, and tied heads twice."""
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and model.tied_embeddings)
