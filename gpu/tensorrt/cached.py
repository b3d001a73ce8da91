"""Plans that the engine made before, in the user's cache folder: one for each checkpoint, device, dtype and size."""

import shutil
from pathlib import Path

from gpu.checkpoint.config import ModelConfig
from gpu.checkpoint.fingerprint import model_fingerprint
from gpu.checkpoint.index import Checkpoint
from gpu.errors import ExportError, PlanError
from gpu.onnx.export import export
from gpu.printable import printable
from gpu.tensorrt.build import build
from gpu.tensorrt.library import ALIGNMENT
from gpu.tensorrt.plan import FORMAT, Here, ReadPlan, read_engine
from gpu.user_cache import user_cache
from gpu.whole_folder import remove_folder, whole_folder

SPARE = 1  # positions of a plan that no token has: rows that rest while others decode write there
_STEP = ALIGNMENT  # positions
_PLAN = "model.plan"


def positions_of(capacity: int) -> int:
    """Give the positions of a plan for so many tokens of a row, and more: other capacities near by take the same plan.

    Each row's part of a cache then begins where TensorRT takes it, whatever a position takes.
    """
    return -(-(capacity + SPARE) // _STEP) * _STEP


def cached_plan(
    checkpoint: Checkpoint,
    model: ModelConfig,
    here: Here,
    *,
    dtype: str,
    rows: int,
    capacity: int,
    lora_rank: int | None = None,
) -> ReadPlan:
    """Read the checkpoint's plan, which is made first if it is not there, or not whole.

    Of processes that make it at once, the first one to end has made it.

    Raises
    ------
    PlanError
        If TensorRT does not build it, or it cannot be kept.
    ExportError
        If the graph that it is made of cannot be.
    CheckpointError
        If the checkpoint cannot be read.
    """
    fingerprint = model_fingerprint(checkpoint.folder)
    positions = positions_of(capacity)
    taking = "" if lora_rank is None else f"-lora{lora_rank}"
    key = f"{fingerprint}-{here.flavour}-{here.version}-{here.device}-{dtype}-{rows}x{positions}{taking}-{FORMAT}"
    folder = user_cache("plans") / key
    try:
        if folder.is_dir():
            try:
                return read_engine(folder / _PLAN, here, fingerprint)
            except (PlanError, FileNotFoundError):
                remove_folder(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _make(folder, checkpoint, model, here, dtype=dtype, rows=rows, positions=positions, lora_rank=lora_rank)
        except (ExportError, PlanError, OSError):
            if not folder.is_dir():  # else another process was first
                raise
        return read_engine(folder / _PLAN, here, fingerprint)
    except OSError as error:
        raise PlanError(
            f"the plan of the model cannot be kept in {printable(folder.parent)} "
            f"({printable(error.strerror or error)}): make room there, or set XDG_CACHE_HOME to a folder that can be "
            f"written to"
        ) from None


def _make(
    folder: Path,
    checkpoint: Checkpoint,
    model: ModelConfig,
    here: Here,
    *,
    dtype: str,
    rows: int,
    positions: int,
    lora_rank: int | None,
) -> None:
    with whole_folder(folder) as part:
        exported = part / "export"
        export(
            checkpoint, model, exported, dtype=dtype, capacity=positions, max_batch=rows,
            spare=max(0, positions - model.max_positions), lora_rank=lora_rank,
        )  # fmt: skip
        told: set[str] = set()

        def announce(phase: str, done: int, total: int) -> None:
            if phase not in told:
                told.add(phase)
                checkpoint.announce(f"building a plan with TensorRT (once for this model, rows and capacity): {phase}")

        build(exported, part / _PLAN, devices=[here.device], progress=announce)
        shutil.rmtree(exported)
