"""phasewalk build: an export compiled by TensorRT, in one file."""

from pathlib import Path
from typing import Annotated

import typer

from phases.cli.files import check_new
from phases.cli.screen import adapters, build_bar, shown, stdout


def build(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="A folder that phasewalk export made.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PLAN", help="The file to make; nothing may stand there yet.")
    ],
    device: Annotated[
        str | None,
        typer.Option(metavar="CLASS,...", help="Device classes that the plan is for: sm89 is compute capability 8.9.",
                     show_default="all but sm75 (tensorrt-rtx), or the GPU here (tensorrt)"),
    ] = None,
    workspace: Annotated[
        float | None,
        typer.Option(min=0.001, max=2**20, metavar="GIB",
                     help="Memory of the device, in GiB, that an operation may take for itself.",
                     show_default="all of the device"),
    ] = None,
) -> None:  # fmt: skip
    """Compile an export with TensorRT, for NVIDIA GPUs.

    phasewalk export path/to/checkpoint -o model-onnx --dtype bfloat16

    phasewalk build model-onnx -o model.plan --device sm89,sm120

    TensorRT for RTX (pip install 'phasewalk\\[tensorrt-rtx]') builds on any
    machine, with or without a GPU, for GeForce and RTX cards: sm75 is Turing,
    sm80 and sm86 are Ampere, sm89 is Ada, sm120 and sm121 are Blackwell. A plan
    for sm75 is for it alone, and in float16. The full TensorRT (pip install
    'phasewalk\\[tensorrt]') builds for the GPU of its machine, and no other.

    Dtype, capacity, rows and the rank of adapters are those of the export. In
    bfloat16 and float16 attention is one kernel, for the usual sizes of heads; a prefill in float32
    has several.

    The plan says of which model it is, which TensorRT built it, and for which
    devices; elsewhere it is refused, with the reason. Ctrl-C ends the build,
    and leaves nothing behind.
    """
    from gpu.tensorrt.available import missing

    if (reason := missing()) is not None:
        raise typer.BadParameter(f"a plan cannot be built here: {reason}", param_hint="build")
    check_new(output, "--output")
    from gpu import memory
    from gpu.tensorrt.build import build as build_plan

    with build_bar(f"building {output.name}") as progress:
        plan = build_plan(
            export,
            output,
            devices=[] if device is None else [name.strip().lower() for name in device.split(",")],
            workspace=None if workspace is None else int(workspace * 2**30),
            progress=progress,
        )
    stdout().print(
        f"{shown(str(output))}: {memory.size(output.stat().st_size)}, {plan.flavour} {plan.version} for "
        f"{', '.join(plan.devices)}; {plan.dtype}, {plan.max_batch} rows of {plan.capacity} tokens"
        f"{adapters(plan.lora_rank)}"
    )
