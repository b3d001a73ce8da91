"""phasewalk export: a checkpoint as one standard ONNX graph, in a folder of its own."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from phases.cli.files import check_new
from phases.cli.screen import adapters, loading_bar, shown, stdout

GRAPH = "Graph"


class Dtype(StrEnum):
    """What numbers the graph computes in, by the names of the command line."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Codes(StrEnum):
    """How matrices are quantised, by the names of the command line."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder or Hugging Face hub id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make; nothing may stand there yet.")
    ],
    dtype: Annotated[
        Dtype,
        typer.Option(help="Numbers of weights, activations and cache. ONNX Runtime computes in float32 on a CPU.",
                     rich_help_panel=GRAPH),
    ] = Dtype.FLOAT32,
    quantize: Annotated[
        Codes,
        typer.Option(help="Matrices as they are, or as codes of 8 or 4 bits, which ONNX Runtime alone multiplies by.",
                     rich_help_panel=GRAPH),
    ] = Codes.NONE,
    capacity: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that a row of the cache holds, prompt and output together.",
                     show_default="4096, or the model's positions", rich_help_panel=GRAPH),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Rows that run together at most.", rich_help_panel=GRAPH)
    ] = 8,
    lora_rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank at most of a LoRA adapter, which the graph then takes as further inputs.",
                     show_default="no adapters", rich_help_panel=GRAPH),
    ] = None,
) -> None:  # fmt: skip
    """Write a checkpoint as one ONNX graph.

    phasewalk export path/to/checkpoint -o model-onnx

    phasewalk export path/to/checkpoint -o halves --dtype bfloat16 --capacity 8192

    DIR then holds model.onnx, the graph, and weights.bin, its data. The graph
    is made of standard operators (opset 24). It takes tokens and the KV cache,
    writes keys and values into the cache where it lies, and gives the logits
    of each row's last token: input_ids, input_lengths, write_index, positions,
    kv_cache.0.keys, kv_cache.0.values, ... in; logits, present.kv_cache.0.keys,
    present.kv_cache.0.values, ... out.

    With --quantize the graph has an operator of ONNX Runtime's own beside
    these, for products, and its numbers are float32.

    With --lora-rank it also takes an adapter, two matrices for each projection
    of a layer: lora_a.0.q_proj of rank rows, lora_b.0.q_proj of rank columns,
    ... Zeros of rank 1 change nothing. It costs time in every step.

    To run a model takes no export, as the engine onnx makes its own when it
    first loads one: phasewalk run "Hello" --engine onnx

    Tensors are read, rounded and written one after the other. The folder is
    there whole at the end, or not at all.
    """
    from gpu import Checkpoint, ModelConfig, resolve_checkpoint
    from gpu.load import default_capacity
    from gpu.onnx.available import missing

    if (reason := missing()) is not None:
        raise typer.BadParameter(f"a graph cannot be made here: {reason}", param_hint="export")
    check_new(output, "--output")
    from gpu.memory import size
    from gpu.onnx import export as exports

    folder = resolve_checkpoint(checkpoint)
    model = ModelConfig.from_folder(folder)
    with loading_bar(checkpoint, doing="exporting") as progress:
        opened = Checkpoint.open(folder, model, progress)
        exports.export(
            opened,
            model,
            output,
            dtype=dtype.value,
            quantize=None if quantize is Codes.NONE else quantize.value,
            capacity=default_capacity(model) if capacity is None else capacity,
            max_batch=max_batch,
            lora_rank=lora_rank,
        )
    written = sum(file.stat().st_size for file in output.iterdir())
    stdout().print(
        f"{shown(str(output))}: {shown(exports.GRAPH_FILE)} and its data, {size(written)}{adapters(lora_rank)}"
    )
