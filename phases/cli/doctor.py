"""phasewalk doctor: what this machine can run, and what to install for the rest."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from phases.cli.screen import shown, stdout
from phases.cli.verifying import BAD, GOOD, MISSING, Line, verified

OURS = ("statemachine", "phases", "gpu")
LIBRARIES = ("numpy", "safetensors", "tokenizers", "huggingface-hub", "transitions", "structlog")
OPTIONAL = {
    "transformers": "phasewalk[transformers]",  # for tokenizers that tokenizer.json does not describe whole
    "onnx": "phasewalk[onnx]",
    "onnxruntime": "phasewalk[onnx]",
}


def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold an engine against the NumPy engine, on the bundled model.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(help="The engine to verify.", show_default="each that can run here")
    ] = None,
) -> None:
    """Show what this machine can run: engines, devices, versions, and what to install for the rest.

    phasewalk doctor --verify --engine tensorrt

    Exit status 1 if something is broken; what is merely not installed is no
    failure.

    With --verify the bundled model is loaded into the engine, exported and
    compiled first where that is its way. It must give the logits of the NumPy
    engine, but for rounding, and hold the same tokens likeliest. Exit status 1
    if it does not, or cannot run here.
    """
    from gpu import engine_device, engines, unavailable_engines

    if engine is not None and not verify:
        raise typer.BadParameter("it is for --verify", param_hint="--engine")
    if verify:
        _show(verified(engines() if engine is None else [engine]))
        return
    _show(
        [
            *_machine(),
            *_engines({name: engine_device(name) for name in engines()}, unavailable_engines()),
            *_plans(),
            *_tools(),
            *_libraries(),
            *_import_names(),
        ]
    )


def _show(lines: Iterable[Line]) -> None:
    """Print a table, and end with exit status 1 if something in it is broken."""
    from rich.table import Table

    table = Table("", "what", "here", show_header=False, box=None)
    broken = False
    for state, what, here in lines:
        table.add_row(state, what, shown(here))
        broken |= state == BAD
    stdout().print(table)
    if broken:
        raise typer.Exit(1)


def _machine() -> Iterator[Line]:
    from importlib.metadata import version

    yield GOOD, "phasewalk", f"{version('phasewalk')} on Python {platform.python_version()}, {platform.platform()}"
    yield GOOD, "processor", f"{_processor()}, {os.cpu_count()} logical cores"
    from gpu import measure_read_bandwidth

    yield GOOD, "memory reads", f"{measure_read_bandwidth() / 1e9:.1f} GB/s on one thread, measured now"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _engines(devices: dict[str, dict[str, str]], missing: dict[str, str]) -> Iterator[Line]:
    for name, device in devices.items():
        yield GOOD, f"engine {name}", "ready"
        for what, here in device.items():
            yield GOOD, f"  {what}", here
    for name, reason in missing.items():
        yield MISSING, f"engine {name}", reason
    program = shutil.which("nvidia-smi")
    if program is None:
        yield MISSING, "NVIDIA GPU", "none found (no nvidia-smi on the PATH); the CPU engine does the work"
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    for line in answer.stdout.splitlines():
        yield GOOD, "NVIDIA GPU", line.strip()


def _tools() -> Iterator[Line]:
    dot = shutil.which("dot")
    yield (
        (GOOD, "Graphviz", dot)
        if dot
        else (
            MISSING,
            "Graphviz",
            "not found; SVG and PNG diagrams need it: apt install graphviz, brew install graphviz",
        )
    )


def _plans() -> Iterator[Line]:
    from importlib.metadata import PackageNotFoundError, version

    from gpu.tensorrt.available import flavour, missing

    if (reason := missing()) is not None:
        yield MISSING, "TensorRT", reason
        return
    name = str(flavour())
    try:
        which = version(name.replace("_", "-"))
    except PackageNotFoundError:  # installed in some other way
        which = "of an unknown version"
    yield GOOD, "TensorRT", f"{name} {which}: phasewalk build makes plans"


def _libraries() -> Iterator[Line]:
    from importlib.metadata import PackageNotFoundError, version

    for name in (*LIBRARIES, *OPTIONAL):
        try:
            yield GOOD, name, version(name)
        except PackageNotFoundError:
            optional = name in OPTIONAL
            yield MISSING if optional else BAD, name, f"missing; pip install '{OPTIONAL.get(name, name)}'"


def _import_names() -> Iterator[Line]:
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    for name in OURS:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != "phasewalk"})
        if others:
            yield BAD, f"import {name}", f"also owned by {', '.join(others)}; use an environment without it"
        else:
            yield GOOD, f"import {name}", "ours"
