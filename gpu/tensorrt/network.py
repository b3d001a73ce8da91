"""An export as TensorRT's parser reads it: a strongly typed network, whose caches are written where they lie."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper

from gpu.errors import PlanError
from gpu.onnx.export import GRAPH_FILE
from gpu.onnx.identity import Identity
from gpu.onnx.lora import is_lora
from gpu.printable import printable
from gpu.tensorrt.library import FLAVOUR, VERSION, trt

_TOLD = 5  # errors of the parser
_OPEN = -1  # a dimension whose size is known when the plan runs


def parse(network: Any, graph: ModelProto, identity: Identity, folder: Path, log: Any) -> None:
    """Fill a network with the graph of the export in `folder`.

    Raises
    ------
    PlanError
        If the parser refuses a node, made something else of a cache than one that is written in place, or of an
        adapter than what the export says.
    """
    parser = trt.OnnxParser(network, log)
    if not parser.parse(as_it_parses(graph).SerializeToString(), str(folder / GRAPH_FILE)):
        raise PlanError(f"{FLAVOUR} {VERSION} does not read {printable(folder / GRAPH_FILE)}: {_refusals(parser)}")
    _check_caches(network, identity)
    _check_adapter(network, identity)


def as_it_parses(graph: ModelProto) -> ModelProto:
    """Give a copy in which TensorRT may make attention of smaller operations.

    It does so where it has no kernel for it, which is a prefill in float32 and heads of some sizes; else it would fail.
    """
    copy = ModelProto()
    copy.CopyFrom(graph)
    for node in copy.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    return copy


def layers(network: Any) -> Iterator[Any]:
    """Give what the parser made, one after the other."""
    return (network.get_layer(index) for index in range(network.num_layers))


def inputs(network: Any) -> dict[str, Any]:
    """Give the inputs by their names."""
    found = (network.get_input(index) for index in range(network.num_inputs))
    return {tensor.name: tensor for tensor in found}


def outputs(network: Any) -> dict[str, Any]:
    """Give the outputs by their names."""
    found = (network.get_output(index) for index in range(network.num_outputs))
    return {tensor.name: tensor for tensor in found}


def _refusals(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(min(parser.num_errors, _TOLD))]
    told = [f"{printable(error.node_name() or 'the file')} ({_what(error)}): {_why(error)}" for error in errors]
    if parser.num_errors > _TOLD:
        told.append(f"and {parser.num_errors - _TOLD} more")
    return "; ".join(told) or "it gives no reason"


def _what(error: Any) -> str:
    return printable(error.node_operator() or "no node", 40)


def _why(error: Any) -> str:
    return printable(" ".join(error.desc().split()), 300)


def _check_caches(network: Any, identity: Identity) -> None:
    """See that every cache that goes in comes out of an update of that very cache."""
    updated = {
        layer.get_output(0).name: layer.get_input(0).name
        for layer in layers(network)
        if layer.type == trt.LayerType.KV_CACHE_UPDATE
    }
    caches = {name: tensor for name, tensor in inputs(network).items() if name.startswith("kv_cache.")}
    if not caches or updated != {f"present.{name}": name for name in caches}:
        raise PlanError(f"{FLAVOUR} {VERSION} does not update the KV cache of this graph where it lies")
    for name, tensor in caches.items():
        if len(tensor.shape) != 4 or tensor.shape[2] != identity.capacity:
            raise PlanError(
                f"{printable(name)} has the shape {tuple(tensor.shape)}, expected {identity.capacity} positions"
            )


def _check_adapter(network: Any, identity: Identity) -> None:
    """See that adapters of any rank go in if the export says so, and else none."""
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs(network).items() if is_lora(name)}
    if bool(shapes) != (identity.lora_rank is not None):
        said = "none" if identity.lora_rank is None else f"adapters of rank {identity.lora_rank} at most"
        raise PlanError(f"the graph takes {len(shapes)} matrices of adapters, the export says that it takes {said}")
    for name, shape in shapes.items():
        if len(shape) != 2 or shape.count(_OPEN) != 1:
            raise PlanError(f"{printable(name)} has the shape {shape}, expected two dimensions, one of them open")
