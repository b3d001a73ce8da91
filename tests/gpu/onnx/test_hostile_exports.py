"""An export that is not the one that is needed, or not whole, is refused by what is wrong with it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from checkpoints import write_checkpoint

from gpu import Checkpoint, ExportError, ModelConfig, OptionError, load_engine
from gpu.onnx.export import export
from gpu.onnx.graph import seal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelConfig.from_folder(checkpoint)
    target = tmp_path_factory.mktemp("exports") / "whole"
    export(Checkpoint.open(checkpoint, model), model, target, capacity=32, max_batch=2)
    return target


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def rewritten(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    change(graph)
    path.write_bytes(graph.SerializeToString())


def with_metadata(name: str, value: str) -> Callable[[onnx.ModelProto], object]:
    def change(graph: onnx.ModelProto) -> None:
        metadata = {entry.key: entry.value for entry in graph.metadata_props} | {f"phasewalk.{name}": value}
        onnx.helper.set_model_props(graph, metadata)

    return change


def by_hand(graph: onnx.ModelProto) -> None:
    [attention] = [node for node in graph.graph.node if node.name == "model.layers.1.self_attn.attended"]
    attention.attribute.append(onnx.helper.make_attribute("scale", 0.5))


def elsewhere(graph: onnx.ModelProto) -> None:
    for entry in graph.graph.initializer[-1].external_data:
        if entry.key == "location":
            entry.value = "../../etc/passwd"


def load(checkpoint: Path, folder: Path, **options: int) -> None:
    load_engine(checkpoint, "onnx", export=folder, **({"max_batch": 2, "capacity": 32} | options)).close()


def test_one_that_is_whole_runs(checkpoint: Path, copied: Path) -> None:
    load(checkpoint, copied)
    load(checkpoint, copied, max_batch=1)
    rewritten(copied, lambda graph: None)  # written anew, it is the same graph
    load(checkpoint, copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (by_hand, "model.onnx is not the graph that was exported: it was changed"),
        (elsewhere, "it was changed"),
        (lambda graph: graph.graph.node.pop(), "it was changed"),
        (lambda graph: graph.opset_import[0].__setattr__("version", 23), "it was changed"),
        (with_metadata("capacity", "64"), "it was changed"),
        (with_metadata("dtype", "float16"), "it was changed"),
        (with_metadata("quantize", "int8"), "it was changed"),
        (with_metadata("quantize", "int3"), "metadata makes no sense: weights are not quantised as int3"),
        (with_metadata("dtype", "int3"), "metadata makes no sense: there is no dtype int3"),
        (with_metadata("capacity", "many"), "metadata makes no sense"),
        (with_metadata("lora_rank", "8"), "it was changed"),
        (with_metadata("lora_rank", "0"), "metadata makes no sense: lora_rank is 0, expected at least 1"),
        (with_metadata("lora_rank", "any"), "metadata makes no sense"),
        (with_metadata("lora_rank", "9" * 5000), "metadata makes no sense"),
        (with_metadata("format", "1"), "it has format 1, this version reads and writes 6"),
        (with_metadata("format", "\x1b[2J"), r"it has format \\x1b\[2J"),
        (with_metadata("fingerprint", "0" * 32), "it is of another model: it names the fingerprint 0{32}"),
        (lambda graph: graph.ClearField("metadata_props"), "its metadata names no format"),
    ],
)
def test_a_graph_that_was_changed_is_refused(
    checkpoint: Path, copied: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    rewritten(copied, change)
    with pytest.raises(ExportError, match=message) as refused:
        load(checkpoint, copied)
    assert str(refused.value).startswith(f"{copied} cannot be used: ")
    assert str(refused.value).endswith("export the checkpoint again")


@pytest.mark.parametrize(
    ("rank", "message"),
    [("8", "it was changed"), ("33", "a lora_rank of 33 was asked for, no change of this model's .* above 32")],
)
def test_adapters_that_a_graph_does_not_take_are_found_though_it_was_sealed_again(
    checkpoint: Path, copied: Path, rank: str, message: str
) -> None:
    def change(graph: onnx.ModelProto) -> None:
        with_metadata("lora_rank", rank)(graph)
        seal(graph)

    rewritten(copied, change)
    with pytest.raises(ExportError, match=rf"cannot be used: .*{message}.*export the checkpoint again"):
        load(checkpoint, copied)


def test_one_of_another_model_of_the_same_shape_is_refused(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(ExportError, match="it is of another model"):
        load(write_checkpoint(tmp_path / "other", seed=1), copied)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(10_000)
        file.write(b"\xff" * 8)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("weights.bin", truncate, r"weights.bin has \d+ bytes, expected \d+"),
        ("weights.bin", scribble, "weights.bin does not hold what was exported"),
        ("weights.bin", os.unlink, "it holds no weights.bin"),
        ("model.onnx", truncate, "model.onnx is no ONNX file|it was changed"),
        ("model.onnx", os.unlink, "it holds no model.onnx"),
        ("model.onnx", lambda path: path.write_bytes(b""), "its metadata names no format"),
        ("model.onnx", lambda path: path.write_bytes(os.urandom(5000)), "model.onnx is no ONNX file"),
        ("model.onnx", lambda path: os.truncate(path, 2**29), "model.onnx has 536870912 bytes, expected at most"),
        ("model.onnx", lambda path: (path.unlink(), path.mkdir()), "it holds no model.onnx"),
        ("model.onnx", lambda path: (path.unlink(), os.mkfifo(path)), "it holds no model.onnx"),
    ],
)
def test_damaged_files_are_told(
    checkpoint: Path, copied: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(copied / name)
    with pytest.raises(ExportError, match=message):
        load(checkpoint, copied)


def test_no_export_at_all_is_told(checkpoint: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", checkpoint):
        with pytest.raises(ExportError, match=r"it holds no model\.onnx"):
            load(checkpoint, folder)


def test_an_export_for_other_rows_says_which_it_is_for(checkpoint: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="capacity of 32: load it with capacity=32"):
        load(checkpoint, copied, capacity=33)
    with pytest.raises(OptionError, match="for 2 rows: load it with max_batch=2"):
        load(checkpoint, copied, max_batch=3)
    model = ModelConfig.from_folder(checkpoint)
    export(Checkpoint.open(checkpoint, model), model, tmp_path / "halves", dtype="bfloat16")
    with pytest.raises(OptionError, match="in bfloat16, the engine onnx computes in float32"):
        load(checkpoint, tmp_path / "halves")


def test_only_this_engine_takes_an_export(checkpoint: Path, copied: Path) -> None:
    with pytest.raises(
        OptionError, match="the engine numpy has no option export: leave it out, or take the engine onnx"
    ):
        load_engine(checkpoint, "numpy", export=copied)
