"""Exports: a folder with the graph and its data, made whole or not at all, and believed only when it was checked."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import onnx

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import fingerprint, model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.errors import ExportError
from gpu.memory import size
from gpu.onnx.data import DATA_FILE, data_size, stored_size, write_data
from gpu.onnx.graph import model_of, unchanged
from gpu.onnx.identity import Identity
from gpu.printable import printable
from gpu.whole_folder import whole_folder

GRAPH_FILE = "model.onnx"
_LARGEST_GRAPH = 256 * 2**20  # bytes
_CHANGED = f"{GRAPH_FILE} is not the graph that was exported: it was changed"


def export(
    checkpoint: Checkpoint,
    model: ModelConfig,
    target: Path,
    *,
    dtype: str = "float32",
    capacity: int | None = None,
    max_batch: int | None = None,
    quantize: str | None = None,
    lora_rank: int | None = None,
    spare: int = 0,
) -> Identity:
    """Write a checkpoint as one ONNX graph, `model.onnx`, with its data beside it, in a new folder.

    Parameters
    ----------
    checkpoint : Checkpoint
        The weights; one tensor at a time is in memory.
    model : ModelConfig
        The shape of the model.
    target : Path
        The folder to make; the one that it lies in must exist.
    dtype : str
        Of weights, activations and cache: float32, bfloat16 or float16. Logits are float32.
    capacity : int, optional
        Positions of a row. Without one the graph takes caches of any capacity, which not every compiler can.
    max_batch : int, optional
        Rows that will run together, for whoever compiles the graph; its batch is any number.
    quantize : {"int8", "int4"}, optional
        Matrices of products as codes of so many bits, which ONNX Runtime alone multiplies by, in float32.
    lora_rank : int, optional
        The graph takes a LoRA adapter of this rank at most as further inputs, see `gpu.onnx.graph.model_of`; without
        one, zeros of rank 1. It costs a step of 12 layers of 768 about 0.9 ms on one thread of a CPU, adapter or none.
    spare : int
        How many positions of the capacity no token will have.

    Returns
    -------
    Identity
        What the export says of itself.

    Raises
    ------
    ExportError
        If something stands at `target` already, the disk has too little room, the dtype cannot hold a number, or the
        numbers make no sense.
    CheckpointError
        If the checkpoint cannot be read.
    OSError
        If the folder cannot be written to.
    """
    identity = Identity(
        model_fingerprint(checkpoint.folder), dtype, capacity, max_batch, quantize=quantize, lora_rank=lora_rank
    )
    _check_rank(model, identity)
    if quantize is not None and dtype != "float32":
        raise ExportError(f"{quantize} weights are multiplied by float32 numbers: leave out {dtype}, or {quantize}")
    if capacity is not None and capacity - spare > model.max_positions:
        raise ExportError(f"a capacity of {capacity} was asked for, the model has {model.max_positions} positions")
    if os.path.lexists(target):
        raise ExportError(f"{printable(target)} exists already: choose another name or remove it")
    needed, free = data_size(model, dtype, quantize), shutil.disk_usage(target.parent).free
    if needed > free:
        raise ExportError(
            f"the export takes {size(needed)}, and {size(free)} are free where {printable(target)} is to lie: make "
            f"room or choose another place"
        )
    with whole_folder(target) as folder:
        write_data(folder / DATA_FILE, checkpoint, model, dtype, quantize)
        identity = identity.with_weights(fingerprint([folder / DATA_FILE]))
        with (folder / GRAPH_FILE).open("xb") as file:
            file.write(model_of(model, identity).SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        onnx.checker.check_model(str(folder / GRAPH_FILE))
    return identity


class Export(NamedTuple):
    """An export that was read and found whole."""

    folder: Path
    identity: Identity  # what it says of itself
    graph: onnx.ModelProto  # its data are in the folder


def read_export(folder: Path) -> Export:
    """Read an export without its checkpoint.

    Raises
    ------
    ExportError
        If it is no export, is one of another version, or its graph or data were changed or cut short.
    """
    with told(folder):
        return _read(folder)


def check_export(folder: Path, model: ModelConfig, checkpoint_fingerprint: str) -> Export:
    """Read an export, and see that it is of this checkpoint, and takes and gives what is bound to it.

    Raises
    ------
    ExportError
        If it is no export, is one of another model or version, or its graph or data were changed or cut short.
    """
    with told(folder):
        found = _read(folder, checkpoint_fingerprint)
        _check_rank(model, found.identity)
        if _interface(found.graph) != _interface(model_of(model, found.identity)):
            raise ExportError(_CHANGED)
        return found


def _interface(graph: onnx.ModelProto) -> tuple[object, ...]:
    """Give what is relied on by whoever runs a graph: what goes in and out, which data it reads, and its operators."""
    stored = [tensor for tensor in graph.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    operators = {(node.domain, node.op_type) for node in graph.graph.node}
    elsewhere = [*graph.functions, *graph.graph.sparse_initializer]
    return [*graph.graph.input], [*graph.graph.output], stored, operators, [*graph.opset_import], elsewhere


def _check_rank(model: ModelConfig, identity: Identity) -> None:
    """A matrix with `hidden` rows or columns has no higher rank, and each one that is adapted has so many."""
    if identity.lora_rank is not None and identity.lora_rank > model.hidden:
        raise ExportError(
            f"a lora_rank of {printable(identity.lora_rank, 40)} was asked for, no change of this model's matrices "
            f"has a rank above {model.hidden}"
        )


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Say of every fault of an export which one has it, and what to do."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{printable(folder)} cannot be used: {error}; export the checkpoint again") from None
    except OSError as error:
        raise ExportError(f"{printable(folder)} cannot be read: {printable(error.strerror or error)}") from None


def _read(folder: Path, checkpoint_fingerprint: str | None = None) -> Export:
    for name in (GRAPH_FILE, DATA_FILE):
        if not (folder / name).is_file():
            raise ExportError(f"it holds no {name}")
    graph = _read_graph(folder / GRAPH_FILE)
    identity = Identity.of({entry.key: entry.value for entry in graph.metadata_props})
    if checkpoint_fingerprint is not None and identity.fingerprint != checkpoint_fingerprint:
        raise ExportError(
            f"it is of another model: it names the fingerprint {printable(identity.fingerprint)}, the checkpoint has "
            f"{checkpoint_fingerprint}"
        )
    if not unchanged(graph):
        raise ExportError(_CHANGED)
    expected, data = stored_size(graph), folder / DATA_FILE
    if (length := data.stat().st_size) != expected:
        raise ExportError(f"{DATA_FILE} has {length} bytes, expected {expected}")
    if fingerprint([data]) != identity.weights:
        raise ExportError(f"{DATA_FILE} does not hold what was exported: it was changed")
    return Export(folder, identity, graph)


def _read_graph(path: Path) -> onnx.ModelProto:
    if (length := path.stat().st_size) > _LARGEST_GRAPH:
        raise ExportError(f"{path.name} has {length} bytes, expected at most {_LARGEST_GRAPH}")
    graph = onnx.ModelProto()
    try:
        graph.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own kind
        raise ExportError(f"{path.name} is no ONNX file: {printable(error)}") from None
    return graph
